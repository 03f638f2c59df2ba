"""The checks see a machine without a cluster and without keys."""

import tempfile

import pytest


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "TEMPFLOW_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "ray_token"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # the paths of Ray's sockets have a bound
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield
