"""The processes of a Ray that starts here ignore Ctrl-C, and a Ray that cannot start or be reached is one sentence."""

import errno
import signal
import subprocess
from pathlib import Path

import pytest
import ray

from services.base.errors import UserError
from system.launch import cluster
from system.launch.cluster import children_that_ignore_interrupts, connect


def ignores_interrupts() -> bool:
    """Whether a process that is started as Ray starts its own ignores SIGINT."""
    with subprocess.Popen(["sleep", "60"], preexec_fn=lambda: None) as process:
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.kill()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    return bool(ignored >> (signal.SIGINT - 1) & 1)


def test_processes_that_start_with_ray_ignore_ctrl_c_and_later_ones_do_not():
    with children_that_ignore_interrupts():
        assert ignores_interrupts()
    assert not ignores_interrupts()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.fixture
def ray_that_raises(monkeypatch, tmp_path):
    """Makes `connect` start a Ray, or attach to one at an address, whose start raises an error."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(cluster, "check_start", lambda: None)

    def made(error: Exception, address: str | None = None) -> None:
        def init(**settings: object) -> None:
            assert settings["address"] == (address or "local")
            raise error

        monkeypatch.setattr(ray, "init", init)
        monkeypatch.setattr(cluster, "running_ray", lambda: address)

    return made


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup. This could happen because the GCS is overloaded."),
        RuntimeError("Timed out waiting for file gcs_server_port"),
        TimeoutError("Timed out after 30 seconds while waiting for node to startup."),
    ],
)
def test_a_ray_that_does_not_start_is_one_sentence_with_its_cause(ray_that_raises, error):
    ray_that_raises(error)
    with pytest.raises(
        UserError, match=r"Ray did not start on this machine \(.*(T|t)imed out.*session_latest/logs"
    ) as caught:
        connect()
    assert caught.value.__cause__ is error


def test_a_full_disk_while_ray_starts_stays_a_full_disk(ray_that_raises):
    ray_that_raises(OSError(errno.ENOSPC, "No space left on device", "/tmp/ray"))
    with pytest.raises(OSError, match="No space left"):
        connect()


def test_a_cluster_of_other_versions_is_named_with_them(ray_that_raises):
    ray_that_raises(RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n"), "10.0.0.1:6379")
    with pytest.raises(
        UserError, match=r"at 10.0.0.1:6379 \(Version mismatch: .* Ray: 2.59.0\); install the cluster's"
    ):
        connect()
