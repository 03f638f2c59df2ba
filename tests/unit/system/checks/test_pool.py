"""Checks of a pool: one that is about to be served, and one that a recipe shares; without Ray."""

import pytest

from services.base.errors import UserError
from services.serving.settings import PoolSettings
from system.checks.pool import check_pool, shared_pool
from system.recipe.load import load_pool


@pytest.fixture
def pool(tmp_path) -> PoolSettings:
    path = tmp_path / "pool.yaml"
    path.write_text(
        "scorers:\n- {name: size, scorer: jpeg_size, replicas: {min: 1, max: 4}}\n- {name: text, scorer: ocr}\n"
    )
    return load_pool(str(path))


def test_a_pool_that_others_can_reach_needs_a_token(pool, tmp_path, monkeypatch):
    monkeypatch.delenv("TEMPFLOW_TOKEN", raising=False)
    check_pool(pool)
    everywhere = pool.serve.model_copy(update={"host": "0.0.0.0"})
    open_pool = pool.model_copy(update={"serve": everywhere})
    with pytest.raises(UserError, match="token"):
        check_pool(open_pool)
    monkeypatch.setenv("TEMPFLOW_TOKEN", "secret")
    check_pool(open_pool)
    empty = tmp_path / "token"
    empty.write_text("\n")
    with pytest.raises(UserError, match="no token"):
        check_pool(pool.model_copy(update={"serve": pool.serve.model_copy(update={"token_file": str(empty)})}))


def test_a_pool_of_the_same_cluster(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    running = {"pool": ["scorer-size", "Gateway"]}.get
    with pytest.raises(UserError, match="no Ray cluster is running"):
        shared_pool("pool", ["size"], running)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert shared_pool("pool", ["size"], running).level == "ok"
    with pytest.raises(UserError, match="no scorer beauty"):
        shared_pool("pool", ["size", "beauty"], running)
    with pytest.raises(UserError, match="no application `other`"):
        shared_pool("other", ["size"], running)
