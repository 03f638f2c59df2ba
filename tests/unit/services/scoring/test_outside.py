"""Scorers that ask something outside have one patience: the server is down, comes back, is busy, fails, hangs."""

import copy
import json
import logging
import re

import numpy as np
import pytest

from services.base import patience
from services.base.patience import Away
from services.http.client import PoolAway, PoolError
from services.http.wire import ARROW, Answer, write_answer
from services.scoring.geneval.http_detector import DetectorError
from services.scoring.geneval.scorer import GenEval
from services.scoring.outside import PATIENCE_S
from services.scoring.remote import Remote
from tests.helpers.loopback import HANG, Clock, Loopback

IMAGES = np.zeros((1, 8, 8, 3), np.uint8)
PROMPTS = ["a cup"]
ROWS = [{"tag": "single_object", "include": [{"class": "cup", "count": 1}]}]
CUP = {"class": "cup", "score": 0.9, "box": [0, 0, 4, 4]}
SCORED = {
    "geneval": (200, {}, json.dumps({"detections": [[CUP]]}).encode()),
    "remote": (200, {"Content-Type": ARROW}, write_answer(Answer({"size": np.array([1.0])}, {}), ARROW)[0]),
}
FAILURE = {"geneval": DetectorError, "remote": PoolError}
REASON = b'{"detail": "a scorer failed: ValueError"}'


@pytest.fixture(params=["geneval", "remote"])
def kind(request):
    return request.param


@pytest.fixture
def scorer(kind):
    """Builds the scorer for an address."""

    def build(url, **options):
        if kind == "geneval":
            geneval = GenEval(f"{url}/detect", **options)
            return lambda *asked: geneval(*asked)["score"]
        return Remote(url, "size", **options)

    return build


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


def test_one_that_is_down_for_three_minutes_is_waited_for_and_named_in_the_log(kind, scorer, clock, serve, caplog):
    down = Loopback(SCORED[kind])
    down.close()
    clock.at[180] = lambda: serve(SCORED[kind], port=down.port)
    with caplog.at_level(logging.WARNING, patience.__name__):
        assert scorer(down.url)(IMAGES, PROMPTS, ROWS).tolist() == [1.0]
    assert 180 <= clock.now <= 190
    waits, back = [record.message for record in caplog.records]
    assert re.fullmatch(rf"no answer from .*{down.url}\S*: ConnectionError; waiting up to {PATIENCE_S:.0f} s.*", waits)
    assert back == f"the wait is over after {clock.now:.0f} s"


def test_pauses_grow_and_have_jitter(scorer, clock):
    down = Loopback()
    down.close()
    with pytest.raises(Away, match="no answer from"):
        scorer(down.url, patience_s=120)(IMAGES, PROMPTS, ROWS)
    assert clock.now == pytest.approx(120), "the last question comes when the time is up"
    whole = [0.5, 1, 2, 4, 8, *[10] * 50]
    for pause, longest in zip(clock.pauses[:-1], whole, strict=False):
        assert longest / 2 <= pause <= longest
    assert len({pause / longest for pause, longest in zip(clock.pauses, whole, strict=False)}) > 5


@pytest.mark.parametrize("status", [429, 503])
def test_one_that_is_busy_is_asked_again_when_it_says(kind, scorer, clock, serve, status):
    server = serve((status, {"Retry-After": "77"}, b""), (status, {"Retry-After": "soon"}, b""), SCORED[kind])
    assert scorer(server.url)(IMAGES, PROMPTS, ROWS).tolist() == [1.0]
    assert clock.pauses[0] == 77
    assert 0.5 <= clock.pauses[1] <= 1, "what is no time is no request for one"
    assert len(server.asked) == 3
    assert len({body for _, body in server.asked}) == 1, "the same question each time"


def test_one_that_stays_busy_is_given_up(scorer, clock, serve):
    server = serve((503, {"Retry-After": "1000"}, b"loading"))
    with pytest.raises(Away, match="answered 503: loading"):
        scorer(server.url, patience_s=30)(IMAGES, PROMPTS, ROWS)
    assert (clock.pauses, len(server.asked)) == ([30], 2)


def test_one_that_fails_is_not_waited_for(kind, scorer, clock, serve):
    server = serve((500, {}, REASON))
    with pytest.raises(FAILURE[kind], match=r"answered 500: .*a scorer failed") as failed:
        scorer(server.url)(IMAGES, PROMPTS, ROWS)
    assert not isinstance(failed.value, Away)
    assert (clock.pauses, len(server.asked)) == ([], 1)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>welcome</html>",
        b"{}",
        b"[1]",
        b'{"detections": []}',
        b'{"detections": [[{"class": "cup"}]]}',
        b'{"detections": [[3]]}',
        b"",
    ],
)
def test_garbage_is_a_failure_that_is_shown(kind, scorer, clock, serve, body):
    server = serve((200, {}, body))
    with pytest.raises(FAILURE[kind]) as failed:
        scorer(server.url)(IMAGES, PROMPTS, ROWS)
    assert not isinstance(failed.value, Away)
    assert body.decode() in str(failed.value)
    assert server.url in str(failed.value)
    assert (clock.pauses, len(server.asked)) == ([], 1)


def test_one_that_hangs_is_asked_again(kind, scorer, clock, serve):
    server = serve(HANG, HANG, SCORED[kind])
    assert scorer(server.url, timeout_s=0.5)(IMAGES, PROMPTS, ROWS).tolist() == [1.0]
    assert (len(server.asked), len(clock.pauses)) == (3, 2)


def test_half_an_answer_is_none(kind, scorer, clock, serve):
    status, headers, body = SCORED[kind]
    server = serve((status, {**headers, "Content-Length": str(len(body) + 5)}, body), SCORED[kind])
    assert scorer(server.url)(IMAGES, PROMPTS, ROWS).tolist() == [1.0]
    assert len(server.asked) == 2


def test_what_is_away_reaches_another_process_whole():
    away = PoolAway("full")
    away.after_s = 3.0
    sent = copy.copy(away)  # by the same way as a pickle
    assert (str(sent), sent.after_s, type(sent)) == ("full", 3.0, PoolAway)
