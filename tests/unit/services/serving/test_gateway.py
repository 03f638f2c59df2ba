"""The gateway's HTTP API without Serve, against scorers that stand in for deployments."""

import asyncio
import base64
import json
import re
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from ray.serve.schema import ReplicaState, ServeStatus

from services.http.images import encode_image
from services.scoring.loaded import Scored
from services.scoring.scorer import Needs
from services.scoring.settings import ScorerSettings
from services.serving.admission import MAX_NAMED_RUNS, OTHER_RUNS
from services.serving.docs_page import docs_page
from services.serving.gateway import REQUESTS_AT_ONCE, Gateway, api
from services.serving.settings import GatewaySettings

TIMEOUT_S = 60
"""A test whose request never ends fails after this time."""
SIZE = ScorerSettings(name="size", scorer="jpeg_size")
PLAIN = Needs(rows=False, columns=(), groupwise=False)


def image(height: int = 2, width: int = 2, value: int = 0) -> bytes:
    return encode_image(np.full((height, width, 3), value, np.uint8))


def body_of(*images: bytes, prompts: Sequence[str] = ()) -> bytes:
    texts = prompts or ["x"] * len(images)
    items = [{"prompt": p, "image": base64.b64encode(data).decode()} for p, data in zip(texts, images, strict=True)]
    return json.dumps({"items": items}).encode()


class StandIn:
    """A deployment's handle that answers with the mean brightness once it is let, and remembers who asked."""

    def __init__(self) -> None:
        self.score = self
        self.open = asyncio.Event()
        self.open.set()
        self.inside, self.most, self.runs = 0, 0, []
        self.asked: list[tuple[int, list]] = []
        """The number of images and the rows of each request."""
        self.scored = Scored

    async def remote(self, images_NHWC: np.ndarray, prompts: list[str], run: str, rows: list) -> tuple[Scored, float]:
        self.runs.append(run)
        self.asked.append((len(prompts), rows))
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0.01)
        await self.open.wait()
        self.inside -= 1
        return self.scored(images_NHWC.mean(axis=(1, 2, 3))), 0.0


class Pool:
    """A gateway with one scorer, and its client."""

    def __init__(self, gateway: Gateway, client: httpx.AsyncClient, scorer: StandIn) -> None:
        self.gateway, self.client, self.scorer = gateway, client, scorer

    async def score(self, *images: bytes, run: str = "", prompts: Sequence[str] = ()) -> httpx.Response:
        headers = {"Content-Type": "application/json", "X-Tempflow-Run": run}
        return await self.client.post("/v1/score", content=body_of(*images, prompts=prompts), headers=headers)

    async def waits_at_scorer(self, requests: int) -> None:
        while self.scorer.inside < requests:
            await asyncio.sleep(0.001)


@pytest.fixture
def serving(monkeypatch):
    """Opens a pool with gateway settings; Serve would give each request the gateway of its replica."""

    @asynccontextmanager
    async def serving(scorer: ScorerSettings = SIZE, needs: Needs = PLAIN, **settings) -> AsyncIterator[Pool]:
        stand_in, limits = StandIn(), GatewaySettings(**{"decoders": 1, **settings})
        gateway = Gateway("app", limits, [scorer], {"size": needs}, {"size": stand_in})
        monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=gateway))
        transport = httpx.ASGITransport(api)
        async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient(transport=transport, base_url="http://pool") as client:
            yield Pool(gateway, client, stand_in)

    return serving


def test_runs_beyond_the_first_many_share_a_name_on_metrics(serving):
    async def ask() -> list[str]:
        async with serving() as pool:
            for i in range(MAX_NAMED_RUNS + 3):
                assert (await pool.score(image(), run=f"run {i}")).status_code == 200
            assert (await pool.score(image(), run="run 3")).status_code == 200
            assert not pool.gateway.admission.images_of_run, "names of runs without images take memory"
            return pool.scorer.runs

    names = [f"run {i}" for i in range(MAX_NAMED_RUNS)]
    assert asyncio.run(ask()) == [*names, OTHER_RUNS, OTHER_RUNS, OTHER_RUNS, "run 3"]


def test_images_and_pixels_in_the_gateway_are_bounded_and_counted_out_again(serving):
    async def ask() -> None:
        async with serving(max_waiting=9, max_waiting_per_run=5, max_waiting_pixels=100) as pool:
            pool.scorer.open.clear()
            first = asyncio.create_task(pool.score(*[image()] * 5, run="a"))
            await pool.waits_at_scorer(1)
            for refused, why in (
                (pool.score(image(), run="a"), "images"),
                (pool.score(*[image()] * 5, run="b"), "images"),
                (pool.score(image(9, 9), run="b"), "pixels"),
            ):
                answer = await refused
                assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
                assert answer.json() == {"detail": f"the pool has too many {why} waiting; send the request again later"}
            second = asyncio.create_task(pool.score(*[image()] * 4, run="b"))
            await pool.waits_at_scorer(2)
            pool.scorer.open.set()
            assert [answer.status_code for answer in await asyncio.gather(first, second)] == [200, 200]
            assert (await pool.score(*[image()] * 5, run="a")).status_code == 200
            assert (await pool.score(image(20, 20))).status_code == 200, "a large request alone is served"

    asyncio.run(ask())


def test_images_of_many_sizes_take_turns_at_a_scorer(serving):
    async def ask() -> tuple[httpx.Response, int]:
        async with serving() as pool:
            sizes = [image(4, 4 + i, value=i) for i in range(5 * REQUESTS_AT_ONCE)]
            return await pool.score(*sizes), pool.scorer.most

    answer, most = asyncio.run(ask())
    assert answer.json() == {"scores": {"size": list(range(5 * REQUESTS_AT_ONCE))}, "errors": []}
    assert most == REQUESTS_AT_ONCE


def test_a_scorer_that_does_not_answer_is_not_waited_for_and_asked_no_more(serving):
    """Those whose turn comes in the moment of the time-out are let go at once; the other rounds never begin."""

    async def ask() -> tuple[httpx.Response, int, int]:
        async with serving(SIZE.model_copy(update={"timeout_s": 0.2})) as pool:
            pool.scorer.open.clear()
            answer = await pool.score(*[image(4, 4 + i) for i in range(5 * REQUESTS_AT_ONCE)])
            return answer, len(pool.scorer.runs), len(asyncio.all_tasks())

    answer, asked, tasks = asyncio.run(ask())
    assert (answer.status_code, tasks) == (504, 1)
    assert asked <= 2 * REQUESTS_AT_ONCE


def test_a_controller_that_does_not_answer_is_not_an_error_of_ours(serving, monkeypatch):
    done = threading.Event()
    monkeypatch.setattr("services.serving.gateway.STATUS_TIMEOUT_S", 0.05)
    monkeypatch.setattr("services.serving.gateway.serve.status", lambda: done.wait(10))

    async def ask() -> list[int]:
        async with serving() as pool:
            try:
                return [(await pool.client.get(path)).status_code for path in ("/readyz", "/v1/scorers")]
            finally:
                done.set()

    assert asyncio.run(ask()) == [503, 503]


def test_a_controller_that_is_gone_is_not_an_error_of_ours(serving, monkeypatch):
    """Serve's status is empty then."""
    monkeypatch.setattr("services.serving.gateway.serve.status", ServeStatus)

    async def ask() -> list[int]:
        async with serving() as pool:
            return [(await pool.client.get(path)).status_code for path in ("/readyz", "/v1/scorers")]

    assert asyncio.run(ask()) == [503, 503]


def test_what_cannot_be_scored_is_named_and_the_rest_is_scored(serving):
    async def ask() -> httpx.Response:
        async with serving(max_prompt_chars=3) as pool:
            return await pool.score(image(value=7), image(), b"none", prompts=["abc", "abcd", "a"])

    assert asyncio.run(ask()).json() == {
        "scores": {"size": [7, None, None]},
        "errors": [
            {"index": 1, "reason": "its prompt has 4 characters; at most 3 are allowed"},
            {"index": 2, "reason": "is none of PNG, JPEG, WEBP, PPM"},
        ],
    }


def test_a_token_that_was_replaced_is_worth_nothing_any_more(serving, tmp_path):
    file = tmp_path / "token"
    file.write_text("old\n")

    async def ask() -> list[list[int]]:
        async with serving(token_file=str(file)) as pool:

            async def statuses() -> list[int]:
                found = []
                for headers in ({"Authorization": "Bearer old"}, {"Authorization": "Bearer new"}, {}):
                    answer = await pool.client.post(
                        "/v1/score",
                        content=body_of(image()),
                        headers={**headers, "Content-Type": "application/json"},
                    )
                    found.append(answer.status_code)
                return found

            before = await statuses()
            file.write_text("new\n")
            after = await statuses()
            file.write_text("")
            return [before, after, await statuses()]

    assert asyncio.run(ask()) == [[200, 401, 401], [401, 200, 401], [503, 503, 503]]


def test_health_does_not_wait_behind_other_work(serving, monkeypatch):
    """Not even when every thread of the event loop's own pool is busy."""
    deployment = SimpleNamespace(replica_states={ReplicaState.RUNNING: 1})
    status = SimpleNamespace(applications={"app": SimpleNamespace(deployments={"scorer-size": deployment})})
    monkeypatch.setattr("services.serving.gateway.serve.status", lambda: status)
    done = threading.Event()

    async def ready() -> httpx.Response:
        loop = asyncio.get_running_loop()
        async with serving() as pool:
            busy = [loop.run_in_executor(None, done.wait, 60) for _ in range(100)]
            try:
                return await asyncio.wait_for(pool.client.get("/readyz"), 10)
            finally:
                done.set()
                await asyncio.gather(*busy)

    answer = asyncio.run(ready())
    assert (answer.status_code, answer.json()) == (200, "ok")


def test_the_page_of_the_api_loads_nothing():
    page = docs_page(api.openapi())
    assert re.findall(r"""(?:src|href|action)=["']?([^"'>]*)|(url\(|@import|<script|<iframe|<img|<link)""", page) == [
        ("openapi.json", "")
    ]
    assert "://" not in page
    for path in api.openapi()["paths"]:
        assert f" {path}</h2>" in page
    assert "Base64 of a PNG, JPEG, WebP or binary PPM." in page
    assert (api.docs_url, api.redoc_url) == (None, None), "FastAPI's own pages load scripts from elsewhere"


def test_every_refusal_is_documented_with_its_body():
    for path, method in (("/v1/score", "post"), ("/v1/scorers", "get"), ("/readyz", "get")):
        for status, answer in api.openapi()["paths"][path][method]["responses"].items():
            if status not in ("200", "422"):
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Refusal"}, (path, status)


READS_ROWS = Needs(rows=True, columns=("n",), groupwise=False)
GROUPWISE = Needs(rows=False, columns=(), groupwise=True)


def items_of(*items: dict) -> bytes:
    whole = [{"prompt": "x", "image": base64.b64encode(image()).decode(), **item} for item in items]
    return json.dumps({"items": whole}).encode()


def asked(serving, needs: Needs, *items: dict, scorer: ScorerSettings = SIZE, scored=Scored, **settings):
    """The answer to a request, and the requests that the scorer got."""

    async def ask():
        async with serving(scorer, needs, **settings) as pool:
            pool.scorer.scored = scored
            headers = {"Content-Type": "application/json"}
            answer = await pool.client.post("/v1/score", content=items_of(*items), headers=headers)
            return answer, pool.scorer.asked

    return asyncio.run(ask())


def test_a_scorer_that_asks_for_rows_gets_them_and_a_bad_row_fails_alone(serving):
    rows = [{"n": 1}, {"n": "é" * 20}, [1], {"n": [[[[[[[[1]]]]]]]]}, None]
    answer, requests = asked(serving, READS_ROWS, *({"row": row} for row in rows), {}, max_row_bytes=30)
    assert requests == [(3, [{"n": 1}, {}, {}])]
    assert answer.json() == {
        "scores": {"size": [0, None, None, None, 0, 0]},
        "errors": [
            {"index": 1, "reason": "its row has 129 bytes; at most 30 are allowed"},
            {"index": 2, "reason": "its row is not a JSON object"},
            {"index": 3, "reason": "its row has more than 8 levels of lists and mappings"},
        ],
    }


def test_other_scorers_get_none_and_do_not_mind_what_is_in_them(serving):
    answer, requests = asked(serving, PLAIN, {"row": [1]}, {"row": {"n": "x" * 5000}})
    assert requests == [(2, [])]
    assert answer.json() == {"scores": {"size": [0, 0]}, "errors": []}


def test_sub_scores_and_the_scorers_own_reasons_are_in_the_answer(serving):
    def scored(score_N: np.ndarray) -> Scored:
        """Only the two images of one size get sub-scores."""
        if len(score_N) == 1:
            return Scored(score_N)
        return Scored(np.full(len(score_N), np.nan), {"hue": score_N + 1}, {1: "its row has no `n`"})

    items = [{"image": base64.b64encode(image(4, size)).decode()} for size in (4, 5, 4)]
    answer, _ = asked(serving, PLAIN, *items, scored=scored)
    assert answer.json() == {
        "scores": {"size": [None, 0, None], "size.hue": [1, None, 1]},
        "errors": [{"index": 2, "reason": "size: its row has no `n`"}],
    }


def test_a_groupwise_scorer_gets_whole_groups_one_in_a_request(serving):
    groups = ["a", "b", "a", "b", "a"]
    answer, requests = asked(serving, GROUPWISE, *({"group": group} for group in groups))
    assert sorted(requests) == [(2, []), (3, [])]
    assert answer.json() == {"scores": {"size": [0] * 5}, "errors": []}


def test_a_group_that_cannot_be_compared_as_a_whole_fails_as_a_whole(serving):
    broken, wide = {"image": base64.b64encode(b"none").decode()}, {"image": base64.b64encode(image(2, 3)).decode()}
    bad, odd, good = {"group": "bad"}, {"group": "odd"}, {"group": "good"}
    items = [bad, bad | broken, odd, odd | wide, good]
    few = SIZE.model_copy(update={"request_images": 2})
    answer, requests = asked(serving, GROUPWISE, *items, *[{"group": "many"}] * 3, scorer=few)
    assert requests == [(1, [])]
    assert answer.json()["scores"] == {"size": [None, None, None, None, 0, None, None, None]}
    assert [(error["index"], error["reason"]) for error in answer.json()["errors"]] == [
        (0, "size: its group has an image that cannot be scored"),
        (1, "is none of PNG, JPEG, WEBP, PPM"),
        *((i, "size: its group has images of different sizes") for i in (2, 3)),
        *((i, "size: its group has 3 images; at most 2 are compared") for i in (5, 6, 7)),
    ]


def test_a_groupwise_scorer_without_groups_is_refused(serving):
    answer, requests = asked(serving, GROUPWISE, {"group": "a"}, {})
    assert (answer.status_code, requests) == (400, [])
    assert answer.json() == {"detail": "scorer size compares the images of a group; give each item its group"}
