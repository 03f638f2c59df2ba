"""The gateway without Serve: labels, room, and the questions it puts to scorers that are not there."""

import asyncio
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi import HTTPException
from fastapi.security import HTTPAuthorizationCredentials
from ray.serve.schema import ReplicaState

from services.http.images import encode_image
from services.scoring.settings import ScorerSettings
from services.serving.docs_page import docs_page
from services.serving.gateway import MAX_LABELS, REQUESTS_AT_ONCE, Gateway, api
from services.serving.settings import GatewaySettings

SIZE = ScorerSettings(name="size", scorer="jpeg_size")
HASTY = SIZE.model_copy(update={"timeout_s": 0.2})


class Handle:
    """Stands in for a deployment's: answers after a while, and counts how many ask at once."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.inside, self.most = seconds, 0, 0
        self.score = self

    async def remote(self, images_NHWC: np.ndarray, prompts: list[str], run: str) -> tuple[np.ndarray, float]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(self.seconds)
        self.inside -= 1
        return images_NHWC.mean(axis=(1, 2, 3)), self.seconds


def gateway(handle: Handle | None = None, scorer: ScorerSettings = SIZE, **settings) -> Gateway:
    settings = {"decoders": 1, **settings}
    plain = Gateway.func_or_class.__mro__[1] if hasattr(Gateway, "func_or_class") else Gateway
    return plain("app", GatewaySettings(**settings), [scorer], {"size": handle or Handle()})


def test_runs_beyond_the_first_many_share_a_label():
    pool = gateway()
    labels = {pool._label(f"run {i}") for i in range(10 * MAX_LABELS)}
    assert len(labels) == MAX_LABELS + 1
    assert pool._label("run 3") == "run 3"
    assert pool._label("a new one") == "other"


def test_room_is_counted_in_images_and_pixels_and_given_back():
    pool = gateway(max_waiting=9, max_waiting_per_run=5, max_waiting_pixels=100)

    async def take(*requests: tuple[int, int, str]) -> None:
        images, pixels, run = requests[0]
        async with pool._room(images, pixels, run):
            if requests[1:]:
                await take(*requests[1:])

    asyncio.run(take((5, 50, "a"), (4, 50, "b")))
    for refused in ([(6, 1, "a")], [(5, 1, "a"), (5, 1, "b")], [(1, 60, "a"), (1, 60, "b")]):
        with pytest.raises(HTTPException, match="429"):
            asyncio.run(take(*refused))
    asyncio.run(take((1, 1000, "alone, however large")))
    assert (pool.pixels, pool.inside.total()) == (0, 0)


def test_images_of_many_sizes_take_turns_at_a_scorer():
    handle = Handle(0.01)
    pool = gateway(handle)
    images = {i: np.full((1, 1 + i, 3), i, np.uint8) for i in range(5 * REQUESTS_AT_ONCE)}
    scores = asyncio.run(pool._ask(["size"], images, ["x"] * len(images), ""))
    np.testing.assert_array_equal(scores["size"], np.arange(len(images)))
    assert handle.most == REQUESTS_AT_ONCE


def test_a_scorer_that_does_not_answer_is_not_waited_for_and_asked_no_more():
    """Those whose turn comes in the moment of the time-out are let go at once; the other rounds never begin."""
    handle = Handle(60)
    images = {i: np.full((1, 1 + i, 3), i, np.uint8) for i in range(5 * REQUESTS_AT_ONCE)}

    async def ask() -> int:
        with pytest.raises(HTTPException, match="504"):
            await gateway(handle, HASTY)._ask(["size"], images, ["x"] * len(images), "")
        return len(asyncio.all_tasks())

    assert asyncio.run(ask()) == 1
    assert handle.most <= 2 * REQUESTS_AT_ONCE


def test_a_controller_that_does_not_answer_is_not_an_error_of_ours(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr("services.serving.gateway.STATUS_TIMEOUT_S", 0.05)
    monkeypatch.setattr("services.serving.gateway.serve.status", lambda: done.wait(10))

    async def running() -> None:
        try:
            await gateway()._running()
        finally:
            done.set()

    with pytest.raises(HTTPException, match="503"):
        asyncio.run(running())


def test_what_cannot_be_scored_is_named_before_it_is_decoded():
    fine = encode_image(np.zeros((2, 2, 3), np.uint8))
    pixels, errors = gateway(max_prompt_chars=3)._measure(["abc", "abcd", "a"], [fine, fine, b"none"])
    assert pixels == {0: 4}
    assert errors == {1: "its prompt has 4 characters; at most 3 are read", 2: "is none of PNG, JPEG, WEBP"}


def test_a_token_that_was_replaced_is_worth_nothing_any_more(tmp_path):
    file = tmp_path / "token"
    file.write_text("old\n")
    pool = gateway(token_file=str(file))
    old, new = (HTTPAuthorizationCredentials(scheme="Bearer", credentials=token) for token in ("old", "new"))
    assert [pool.allowed(who) for who in (old, new, None)] == [True, False, False]
    file.write_text("new\n")
    assert [pool.allowed(who) for who in (old, new, None)] == [False, True, False]
    file.write_text("")
    for who in (old, new, None):
        with pytest.raises(HTTPException, match="503"):
            pool._authorize(who)


def test_health_does_not_wait_behind_other_work(monkeypatch):
    """Not even when every thread of the event loop's own pool is busy."""
    deployment = SimpleNamespace(replica_states={ReplicaState.RUNNING: 1})
    status = SimpleNamespace(applications={"app": SimpleNamespace(deployments={"scorer-size": deployment})})
    monkeypatch.setattr("services.serving.gateway.serve.status", lambda: status)
    pool, done = gateway(), threading.Event()

    async def running() -> str:
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(None, done.wait, 60) for _ in range(100)]
        try:
            return await asyncio.wait_for(pool.readyz(), 10)
        finally:
            done.set()
            await asyncio.gather(*busy)

    assert asyncio.run(running()) == "ok"


def test_the_page_of_the_api_loads_nothing():
    page = docs_page(api.openapi())
    assert re.findall(r"""(?:src|href|action)=["']?([^"'>]*)|(url\(|@import|<script|<iframe|<img|<link)""", page) == [
        ("openapi.json", "")
    ]
    assert "://" not in page
    for path in api.openapi()["paths"]:
        assert f" {path}</h2>" in page
    assert "Base64 of a PNG, JPEG or WebP." in page
    assert (api.docs_url, api.redoc_url) == (None, None), "FastAPI's own pages load scripts from elsewhere"
