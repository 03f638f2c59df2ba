"""How a replica puts waiting requests together, without Serve."""

from types import SimpleNamespace

import numpy as np
import pytest

from services.scoring.loaded import LoadedScorer, Scored
from services.scoring.settings import ScorerSettings
from services.serving.deployment import ScorerDeployment, ScoreRequest


class Numbers:
    """Numbers the images of a call, and gives the column `n` as a sub-score. It fails if a row says so."""

    columns = ("n",)

    def __call__(self, images_NHWC, prompts, rows):
        if any(row["n"] == "fail" for row in rows):
            raise OSError("no")
        return {"score": np.arange(len(prompts)), "n": [row["n"] for row in rows]}


class Siblings(Numbers):
    groupwise = True


@pytest.fixture
def replica():
    """Makes a replica of a scorer whose metrics go nowhere."""

    def replica(kind: type):
        made = object.__new__(ScorerDeployment.func_or_class)
        nowhere = SimpleNamespace(inc=lambda *_: None, observe=lambda *_: None)
        made.name, made.tags, made.busy, made.batch = "mine", {}, nowhere, nowhere
        made.scorer = LoadedScorer(ScorerSettings(name="mine", scorer=f"{__name__}:{kind.__name__}"))
        return made

    return replica


def request(*ns, size: int = 4) -> ScoreRequest:
    rows = [{} if n is None else {"n": n} for n in ns]
    return ScoreRequest(np.zeros((len(ns), size, size, 3), np.uint8), ["x"] * len(ns), rows)


def test_requests_of_one_image_size_are_one_call_and_each_gets_its_part(replica):
    first, other, second = replica(Numbers)._score_together([request(5, 6), request(7, size=8), request(None, 9)])
    assert first[0].score_N.tolist() == [0, 1]
    assert other[0].score_N.tolist() == [0]
    np.testing.assert_array_equal(second[0].score_N, [np.nan, 2])
    np.testing.assert_array_equal(second[0].sub_scores["n"], [np.nan, 9])
    assert (first[0].errors, second[0].errors) == ({}, {0: "its row has no `n`"})


def test_one_bad_request_fails_alone(replica):
    first, bad, last = replica(Numbers)._score_together([request(5), request("fail"), request(6)])
    assert [first[0].score_N.tolist(), last[0].score_N.tolist()] == [[0], [0]]
    assert isinstance(bad, OSError)


def test_a_groupwise_scorer_gets_each_group_alone(replica):
    requests = [request(1, 2, 3), request(4, 5), request("fail", 6)]
    first, second, bad = replica(Siblings)._score_together(requests)
    assert [scored.score_N.tolist() for scored, _ in (first, second)] == [[0, 1, 2], [0, 1]]
    assert isinstance(bad, OSError)


def test_a_caller_may_send_no_rows(replica):
    (scored, _), *_ = replica(Numbers)._score_together([ScoreRequest(np.zeros((1, 4, 4, 3), np.uint8), ["x"], [])])
    assert isinstance(scored, Scored)
    assert scored.errors == {0: "its row has no `n`"}
