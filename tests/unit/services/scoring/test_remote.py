"""A pool over real HTTP that is away, starting, full, someone else, or refuses."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from services.base import patience
from services.base.errors import UserError
from services.http.client import PoolAway, PoolError
from services.http.wire import ARROW, Answer, read_request, write_answer
from services.scoring.remote import Remote, RemoteGroupwise, wait_for_pool

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
ROWS = [{"count": 2}, {}]
SCORES, _ = write_answer(Answer({"size": np.array([1.0, np.nan])}, {}), ARROW)
STARTING = (503, "application/json", b'{"detail": "no replica of size is running"}')
FULL = (429, "application/json", b'{"detail": "the pool has too many images waiting; send the request again later"}')
PROXY = (404, "text/plain", b"Path '/v1/score' not found.")
REFUSED = (401, "application/json", b'{"detail": "send the pool\'s token as a bearer token"}')
FAILED = (502, "application/json", b'{"detail": "a scorer failed: ValueError"}')
SCORED = (200, ARROW, SCORES)
READY = (200, "application/json", b'"ok"')


@pytest.fixture
def bodies():
    """What the pool was sent."""
    return []


@pytest.fixture
def pool(monkeypatch, bodies):
    """Starts a server that gives these answers, one after the other; its address, and the paths asked for."""
    monkeypatch.setattr(patience, "POLL_S", 0.01)
    monkeypatch.setattr(patience, "TELL_AFTER_S", 0.0)
    servers = []

    def start(*answers):
        left, asked = list(answers), []
        bodies.clear()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
                status, kind, body = left.pop(0)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_pool_that_is_away_starting_or_full_is_asked_again(pool, caplog):
    url, asked = pool(PROXY, STARTING, FULL, SCORED)
    scores = Remote(url, "size")(IMAGES, ["a", "b"], ROWS)
    np.testing.assert_array_equal(scores, [1.0, np.nan])
    assert asked == ["/v1/score?scorers=size"] * 4
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        f"{url} answered 404: Path '/v1/score' not found.",
        "the wait is over after 0 s",
    ]


@pytest.mark.parametrize("answer", [REFUSED, FAILED], ids=["refused", "failed"])
def test_a_pool_that_refuses_or_fails_is_not(pool, answer):
    url, asked = pool(answer)
    with pytest.raises(PoolError, match=str(answer[0])):
        Remote(url, "size")(IMAGES, ["a", "b"], ROWS)
    assert len(asked) == 1


@pytest.mark.parametrize(("kind", "group"), [(Remote, None), (RemoteGroupwise, "all")])
def test_rows_go_to_the_pool_and_sub_scores_come_back(pool, bodies, kind, group, caplog):
    answer = Answer({"judge": np.array([3.0, np.nan]), "judge.colour": np.array([1.0, 2.0])}, {1: "has no `count`"})
    url, _ = pool((200, ARROW, write_answer(answer, ARROW)[0]))
    scored = kind(url, "judge")(IMAGES, ["a", "b"], ROWS)
    np.testing.assert_array_equal(scored["colour"], [1.0, 2.0])
    np.testing.assert_array_equal(scored["score"], [3.0, np.nan])
    items = read_request(bodies[0], ARROW, 9, 99)
    assert [bytes(item.row) for item in items] == [b'{"count":2}', b"{}"]
    assert [item.group for item in items] == [group] * 2
    assert [record.message for record in caplog.records] == ["1 images have no score; of prompt b: has no `count`"]


@pytest.mark.parametrize(
    ("options", "begins"), [({}, b"\x89PNG"), ({"encoding": "jpeg"}, b"\xff\xd8"), ({"encoding": "raw"}, b"P6")]
)
def test_images_are_sent_as_the_setting_says(pool, bodies, options, begins):
    url, _ = pool(SCORED)
    Remote(url, "size", **options)(IMAGES, ["a", "b"], ROWS)
    assert [item.image[: len(begins)] for item in read_request(bodies[0], ARROW, 9, 99)] == [begins] * 2


@pytest.mark.parametrize("make", [Remote, Remote.check, RemoteGroupwise])
def test_an_encoding_that_there_is_not_is_named(make):
    with pytest.raises(UserError, match=r"`bmp`; set options\.encoding to one of png, jpeg, raw"):
        make("http://127.0.0.1:9", "size", encoding="bmp")


def test_the_wait_has_an_end(pool):
    url, asked = pool(*[FULL] * 1000)
    with pytest.raises(PoolAway, match="too many images waiting"):
        Remote(url, "size", patience_s=0.2)(IMAGES, ["a", "b"], ROWS)
    assert len(asked) > 1


def test_a_run_waits_for_its_pool_and_says_what_is_wrong(pool):
    url, asked = pool(PROXY, STARTING, READY)
    wait_for_pool(url, 10)
    assert asked == ["/readyz"] * 3
    with pytest.raises(UserError, match=r"no answer from http://127.0.0.1:9: ConnectionError.*ray.start_timeout_s"):
        wait_for_pool("http://127.0.0.1:9", 0.1)
