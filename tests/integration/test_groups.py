"""Groupwise scorers on a real Serve, over HTTP and over handles: each call gets one whole group and nothing else."""

import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import ray
from ray import serve

from actors.reward.pool import RewardPool
from services.base.ports import free_port
from services.http.client import PoolError, ScoreClient
from services.http.images import encode_image
from services.http.wire import ARROW, read_answer, write_request
from services.scoring.remote import RemoteGroupwise
from services.scoring.settings import ScorerSettings
from services.serving.app import build
from services.serving.settings import PoolSettings, deployment_name
from tests.helpers.http_pool import grey, post

MOST = 6
"""The most images of a group."""


class Ranking:
    """The place of each image in its call by brightness. Sub-scores say which call it was, and in which process.

    A prompt can make it raise, or end its process once.
    """

    groupwise = True

    def __call__(self, images_NHWC, prompts):
        for prompt in prompts:
            if prompt == "raise":
                raise ValueError("the group cannot be ranked")
            if prompt.startswith("die") and not (marker := Path(prompt[4:])).exists():
                marker.touch()
                os._exit(1)
        time.sleep(0.05)  # so that other requests wait in the replica meanwhile
        count, brightness = len(prompts), images_NHWC.mean(axis=(1, 2, 3))
        said = {"call": uuid.uuid4().int >> 80, "process": os.getpid(), "images": count}
        return {"score": place(brightness), **{name: np.full(count, value) for name, value in said.items()}}


def place(brightness_N) -> np.ndarray:
    return np.argsort(np.argsort(brightness_N, kind="stable"))


@dataclass(frozen=True)
class Served:
    """A pool with the groupwise scorer `rank` in two replicas."""

    url: str
    handle: serve.handle.DeploymentHandle

    def pool(self, **changes) -> RewardPool:
        settings = {"name": "rank", "scorer": f"{__name__}:Ranking", "request_images": MOST, **changes}
        return RewardPool({"rank": self.handle}, [ScorerSettings(**settings)], 8)


@pytest.fixture(scope="module")
def served(local_ray) -> Iterator[Served]:
    scorer = ScorerSettings(
        name="rank", scorer=f"{__name__}:Ranking", request_images=MOST, replicas=2, num_cpus=0.1, max_ongoing=8
    )
    pool = PoolSettings(name="pool", scorers=[scorer], serve={"port": free_port()})
    serve.start(http_options={"host": pool.serve.host, "port": pool.serve.port})
    serve.run(build(pool), name=pool.name)
    yield Served(pool.serve.url, serve.get_deployment_handle(deployment_name("rank"), pool.name))
    serve.shutdown()


def check_whole(groups: list[str], brightness: list[int], scores: dict[str, np.ndarray]) -> None:
    """Each group was one call in one process, which had its images alone; each image has its place among them."""
    calls = set()
    for group in dict.fromkeys(groups):
        its = [i for i, name in enumerate(groups) if name == group]
        np.testing.assert_array_equal(scores["rank"][its], place([brightness[i] for i in its]))
        assert (scores["rank.images"][its] == len(its)).all()
        assert len(set(scores["rank.process"][its])) == 1
        (call,) = set(scores["rank.call"][its])
        calls.add(call)
    assert len(calls) == len(set(groups))


def mixed(count: int, seed: int) -> tuple[list[str], list[int]]:
    """The names of `count` groups of 1 to MOST images, in a random order of all images, and brightnesses."""
    rng = np.random.default_rng(seed)
    groups = [f"group {i}" for i in range(count) for _ in range(rng.integers(1, MOST + 1))]
    return rng.permutation(groups).tolist(), rng.permutation(256)[: len(groups)].tolist()


def test_over_http_no_group_is_split_or_joined_with_another(served):
    """Four callers send groups of the same names at once, whose images are in any order."""

    def ask(seed: int) -> np.ndarray:
        groups, brightness = mixed(12, seed)
        images = [grey(value) for value in brightness]
        scores = ScoreClient(served.url).score(images, ["x"] * len(images), groups=groups).scores
        check_whole(groups, brightness, scores)
        return scores["rank.process"]

    with ThreadPoolExecutor(4) as threads:
        processes = np.concatenate(list(threads.map(ask, range(4))))
    assert len(set(processes)) == 2, "both replicas score groups"


def test_json_says_the_same_as_arrow(served):
    groups, brightness = mixed(4, 9)
    images = [encode_image(grey(value)) for value in brightness]
    items = [{"prompt": "x", "image": image, "group": group} for image, group in zip(images, groups, strict=True)]
    said = post(served.url, msgspec.json.encode({"items": items})).json()
    scores = {name: np.array(values) for name, values in said["scores"].items()}
    check_whole(groups, brightness, scores)
    arrow = read_answer(post(served.url, write_request(["x"] * len(images), images, groups=groups), kind=ARROW).content)
    np.testing.assert_array_equal(arrow.scores["rank"], scores["rank"])


def test_a_pool_that_asks_another_pool_passes_the_group_on_whole(served):
    images, rows = np.stack([grey(value) for value in (30, 10, 20)]), [{}] * 3
    said = RemoteGroupwise(served.url, "rank")(images, ["x"] * 3, rows)
    assert said["score"].tolist() == [2, 0, 1]
    assert said["images"].tolist() == [3, 3, 3]
    assert len(set(said["call"])) == 1


def test_over_http_a_group_fails_as_a_whole_and_alone(served):
    """One group has too many images, one an image that is none; the scorer raises for a third."""
    large, broken, good = ["large"] * (MOST + 1), ["broken"] * 3, ["good"] * 2
    groups = [*large, *broken, *good]
    images = [encode_image(grey(i)) for i in range(len(groups))]
    images[len(large) + 1] = b"none"
    body = write_request(["x"] * len(groups), images, groups=groups)
    answer = read_answer(post(served.url, body, kind=ARROW).content)
    np.testing.assert_array_equal(answer.scores["rank"], [np.nan] * (len(large) + len(broken)) + [0, 1])
    at = len(large)
    assert answer.errors == {
        **dict.fromkeys(range(at), f"rank: its group has {MOST + 1} images; at most {MOST} are compared"),
        at: "rank: its group has an image that cannot be scored",
        at + 1: "is none of PNG, JPEG, WEBP, PPM",
        at + 2: "rank: its group has an image that cannot be scored",
    }
    with pytest.raises(PoolError, match="502: a scorer failed: ValueError"):
        ScoreClient(served.url).score([grey(0), grey(1)], ["x", "raise"], groups=["a", "a"])


def scored(pool: RewardPool, prompts: list[str], brightness: list[int], group: int):
    images = ray.put(np.stack([grey(value) for value in brightness]))
    return pool.score(images, prompts, ["rank"], np.ones(len(prompts), bool), group=group).result(120)


def test_over_the_handle_groups_stay_whole_when_a_replica_dies(served, tmp_path):
    """Eight groups of three, and the process of whoever gets the third group ends. What it held is sent again."""
    groups = [f"group {i // 3}" for i in range(24)]
    prompts = [f"die {tmp_path / 'once'}" if group == "group 2" else "x" for group in groups]
    brightness = np.random.default_rng(0).permutation(256)[:24].tolist()
    scores = scored(served.pool(), prompts, brightness, 3)
    assert (tmp_path / "once").exists()
    assert scores.retries >= 1
    assert scores.errors == {}
    check_whole(groups, brightness, {**scores.by_scorer, **scores.sub_scores})


def test_over_the_handle_a_failed_group_has_holes_alone(served):
    prompts = ["x", "x", "x", "raise", "x", "x"]
    scores = scored(served.pool(attempts=2), prompts, list(range(6)), 3)
    np.testing.assert_array_equal(scores.by_scorer["rank"], [0, 1, 2, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(np.isnan(scores.sub_scores["rank.call"]), [False] * 3 + [True] * 3)
    assert scores.errors == {"rank": "ValueError: the group cannot be ranked"}
    assert scores.retries == 1


def test_over_the_handle_a_group_larger_than_the_pools_bound_has_holes(served):
    """A recipe may promise more images in a request than the pool that it shares accepts."""
    count = MOST + 1
    scores = scored(served.pool(attempts=1, request_images=99), ["x"] * count, list(range(count)), count)
    assert np.isnan(scores.by_scorer["rank"]).all()
    why = f"a request has {count} images; the pool's setting request_images of this scorer allows {MOST}"
    assert scores.errors == {"rank": f"ValueError: {why}"}
