"""The reward pool against handles that fail in every way."""

import math
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError
from ray.serve.exceptions import BackPressureError

from actors.lost import Lost
from actors.reward import pool as pool_module
from actors.reward.pool import RewardPool
from actors.reward.scores import Scores, gathered, why_holes
from services.scoring.loaded import Scored
from services.scoring.settings import ScorerSettings
from tests.helpers.scripted_pool import Handle, Response, good, pool_of


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(pool_module, "BACKOFF_S", 0.0)


def test_all_scorers_are_asked_before_any_answer_is_awaited():
    order = []

    class Watching(Handle):
        def remote(self, images, prompts, start, run, rows):
            order.append("asked")
            return super().remote(images, prompts, start, run, rows)

    class Slow(Response):
        def result(self, timeout_s):
            order.append("awaited")
            return super().result(timeout_s)

    handles = {name: Watching(good(1.0)) for name in ("a", "b")}
    for handle in handles.values():
        handle.remote = lambda *_, h=handle: (order.append("asked"), Slow(h.answers.pop(0)))[1]
    scores = pool_of(**handles).score(None, ["x"], ["a", "b"], np.ones(1, bool)).result(10)
    assert order == ["asked", "asked", "awaited", "awaited"]
    assert scores.by_scorer["b"].tolist() == [1.0]


def test_a_failed_request_goes_out_again_alone():
    a, b = Handle(good(1.0, 2.0)), Handle(TimeoutError("slow"), ActorDiedError(), good(3.0, 4.0))
    scores = pool_of(a=a, b=b).score(None, ["x", "y"], ["a", "b"], np.ones(2, bool)).result(10)
    assert (a.calls, b.calls, scores.retries) == (1, 3, 2)
    assert scores.by_scorer["b"].tolist() == [3.0, 4.0]
    assert scores.errors == {}
    assert scores.busy_s == {"a": 0.5, "b": 0.5}


def test_a_scorer_that_fails_every_attempt_leaves_holes_and_says_why():
    cause = OSError("the model file is gone")
    error = RayTaskError("score", "traceback", cause)
    scores = pool_of(attempts=2, a=Handle(error, error)).score(None, ["x", "y"], ["a"], np.ones(2, bool)).result(10)
    assert np.isnan(scores.by_scorer["a"]).all()
    assert scores.errors["a"] == "OSError: the model file is gone"


def test_our_own_mistakes_are_not_swallowed():
    with pytest.raises(KeyError):
        pool_of(a=Handle(KeyError("a bug"))).score(None, ["x"], ["a"], np.ones(1, bool)).result(10)


def test_a_pool_that_closes_ends_every_job():
    """The one that is being scored with holes, the one that waits for its turn and later ones as cancelled."""
    asked = threading.Event()

    class Fails(Handle):
        def remote(self, images, prompts, start, run, rows):
            asked.set()
            return Response(TimeoutError("slow"))

    settings = [ScorerSettings(name="a", scorer="jpeg_size", attempts=10**9)]
    pool = RewardPool({"a": Fails()}, settings, 1)
    scoring, waiting = (pool.score(None, ["x"], ["a"], np.ones(1, bool)) for _ in range(2))
    assert asked.wait(10)
    pool.close()
    later = pool.score(None, ["x"], ["a"], np.ones(1, bool))
    assert np.isnan(scoring.result(10).by_scorer["a"]).all()
    for future in (waiting, later):
        with pytest.raises(CancelledError):
            future.result(10)


def test_images_that_are_lost_with_their_node_are_a_loss():
    lost = RayTaskError("score", "", cause=ObjectLostError("ab", None, ""))
    with pytest.raises(Lost):
        pool_of(a=Handle(lost)).score(None, ["x"], ["a"], np.ones(1, bool)).result(10)


def test_images_go_out_in_requests_and_only_the_failed_one_again():
    handle = Handle(good(1.0, 2.0), TimeoutError("slow"), good(5.0), good(3.0, 4.0))
    settings = [ScorerSettings(name="a", scorer="jpeg_size", request_images=2)]
    scores = (
        RewardPool({"a": handle}, settings, 4, "mine").score(None, list("vwxyz"), ["a"], np.ones(5, bool)).result(10)
    )
    assert scores.by_scorer["a"].tolist() == [1, 2, 3, 4, 5]
    assert handle.asked == [(0, 2, "mine"), (2, 2, "mine"), (4, 1, "mine"), (2, 2, "mine")]
    assert (scores.retries, scores.errors, scores.busy_s) == (1, {}, {"a": 1.5})


def test_a_request_that_fails_for_good_leaves_its_own_holes():
    handle = Handle(good(1.0), ActorDiedError(), ActorDiedError())
    settings = [ScorerSettings(name="a", scorer="jpeg_size", request_images=1, attempts=2)]
    scores = RewardPool({"a": handle}, settings, 4).score(None, ["x", "y"], ["a"], np.ones(2, bool)).result(10)
    np.testing.assert_array_equal(scores.by_scorer["a"], [1, np.nan])
    assert "ActorDiedError" in scores.errors["a"]


def test_a_full_pool_is_waited_for_and_is_no_failure():
    full = BackPressureError(num_queued_requests=9, max_queued_requests=9)
    scores = (
        pool_of(attempts=1, a=Handle(full, full, full, good(1.0)))
        .score(None, ["x"], ["a"], np.ones(1, bool))
        .result(10)
    )
    assert scores.by_scorer["a"].tolist() == [1.0]
    assert scores.retries == 3


def test_but_not_for_longer_than_its_timeout():
    full = BackPressureError(num_queued_requests=9, max_queued_requests=9)
    settings = [ScorerSettings(name="a", scorer="jpeg_size", timeout_s=1e-6)]
    scores = RewardPool({"a": Handle(full)}, settings, 4).score(None, ["x"], ["a"], np.ones(1, bool)).result(10)
    assert np.isnan(scores.by_scorer["a"]).all()
    assert "BackPressureError" in scores.errors["a"]


class Clock:
    """A time that passes only while somebody waits for an answer."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(pool_module.time, "monotonic", lambda: self.now)

    def hangs(self) -> Response:
        """A response that never comes."""
        return self._response(TimeoutError("hung"), math.inf)

    def answers(self, answer, after_s: float) -> Response:
        """A response that comes `after_s` seconds from now, when all requests are sent at once."""
        return self._response(answer, self.now + after_s)

    def _response(self, answer, comes: float) -> Response:
        response = Response(answer)

        def result(timeout_s):
            assert timeout_s >= 0
            ends = self.now + timeout_s
            self.now = max(self.now, min(ends, comes))
            if comes > ends:
                raise TimeoutError("hung")
            return Response.result(response, timeout_s)

        response.result = result
        return response


def _asked(clock: Clock, responses: list[Response], attempts: int = 1) -> tuple[list[float], float]:
    """The scores of one image a request with a timeout of 60 s, and the seconds until they were known."""
    handle = Handle()
    handle.remote = lambda *_: responses.pop(0)
    settings = [ScorerSettings(name="a", scorer="jpeg_size", request_images=1, attempts=attempts, timeout_s=60)]
    started, images = clock.now, len(responses) // attempts
    scores = RewardPool({"a": handle}, settings, 1).score(None, ["x"] * images, ["a"], np.ones(images, bool)).result(10)
    return scores.by_scorer["a"].tolist(), clock.now - started


def test_requests_to_a_scorer_that_hangs_fail_at_the_same_time(monkeypatch):
    clock = Clock(monkeypatch)
    scores, seconds = _asked(clock, [clock.hangs() for _ in range(10)], attempts=2)
    assert np.isnan(scores).all()
    assert seconds == 120


def test_a_request_waits_its_turn_as_long_as_others_are_answered(monkeypatch):
    clock = Clock(monkeypatch)
    why = RayTaskError("score", "traceback", OSError("the service is away"))
    slow = [clock.answers(good(1.0), 50), clock.answers(why, 100), clock.answers(good(3.0), 150), clock.hangs()]
    scores, seconds = _asked(clock, slow)
    np.testing.assert_array_equal(scores, [1, np.nan, 3, np.nan])
    assert seconds == 150 + 60


def test_answers_that_wait_behind_a_hung_request_are_read(monkeypatch):
    clock = Clock(monkeypatch)
    scores, seconds = _asked(clock, [clock.hangs(), clock.answers(good(2.0), 30)])
    np.testing.assert_array_equal(scores, [np.nan, 2])
    assert seconds == 60


class Rank:
    groupwise = True

    def __call__(self, images_NHWC, prompts): ...


def test_rows_go_out_with_their_prompts_and_sub_scores_and_reasons_come_back():
    first = Scored(np.array([1.0, np.nan]), {"hue": np.array([5.0, 6.0])}, {1: "its row has no `n`"})
    handle = Handle((first, 0.5), good(3.0))
    settings = [ScorerSettings(name="a", scorer="jpeg_size", request_images=2)]
    rows = [{"n": 1}, {}, {"n": 3}]
    scores = RewardPool({"a": handle}, settings, 4).score(None, ["x"] * 3, ["a"], np.ones(3, bool), rows).result(10)
    np.testing.assert_array_equal(scores.by_scorer["a"], [1, np.nan, 3])
    np.testing.assert_array_equal(scores.sub_scores["a.hue"], [5, 6, np.nan])
    assert scores.errors == {"a": "its row has no `n`"}
    assert why_holes([scores]) == "scorer `a`: its row has no `n`"
    assert handle.rows == [{"n": 3}]


def test_a_group_goes_out_whole_and_again_as_a_whole():
    handle = Handle(TimeoutError("slow"), good(*range(5)))
    settings = [ScorerSettings(name="a", scorer=f"{__name__}:Rank", request_images=2)]
    scores = RewardPool({"a": handle}, settings, 4).score(None, list("vwxyz"), ["a"], np.ones(5, bool)).result(10)
    assert scores.by_scorer["a"].tolist() == [0, 1, 2, 3, 4]
    assert handle.asked == [(0, 5, ""), (0, 5, "")]


def test_an_image_that_is_not_finite_has_no_sub_scores_either():
    handle = Handle((Scored(np.array([1.0, 2.0]), {"hue": np.array([3.0, 4.0])}), 0.5))
    settings = [ScorerSettings(name="a", scorer="jpeg_size")]
    pool = RewardPool({"a": handle}, settings, 4)
    scores = pool.score(None, ["x", "y"], ["a"], np.array([False, True])).result(10)
    np.testing.assert_array_equal(scores.sub_scores["a.hue"], [np.nan, 4])


def test_a_task_whose_requests_all_failed_has_holes_in_the_sub_scores_of_the_others():
    scored = Scores({"a": np.array([1.0, 2.0])}, {"a.hue": np.array([3.0, 4.0])})
    together = gathered([Scores({"a": np.array([np.nan])}), scored])
    assert list(together) == ["a", "a.hue"]
    np.testing.assert_array_equal(together["a.hue"], [np.nan, 3, 4])
