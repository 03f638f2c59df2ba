"""What `tempflow doctor` says of a scorer: services are asked once, models score an image."""

import json
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest

from services.base.errors import UserError
from services.scoring.probe import probe
from services.scoring.settings import ScorerSettings

POOL = b'[{"name": "size", "scorer": "jpeg_size", "replicas": 1}]'
NOTHING_SEEN = (200, {}, b'{"detections": [[]]}')


class Pool(BaseHTTPRequestHandler):
    """Lists a scorer `size` to whoever brings the token."""

    def do_GET(self) -> None:
        allowed = self.headers.get("authorization") == "Bearer right"
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(POOL if allowed else b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def pool_url(monkeypatch):
    monkeypatch.delenv("TEMPFLOW_TOKEN", raising=False)
    server = HTTPServer(("127.0.0.1", 0), Pool)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def tried(kind: str, /, **options: object) -> str:
    return probe(ScorerSettings(name="mine", scorer=kind, options=options), 256, 512)


class Broken:
    def __call__(self, images_NHWC, prompts):
        return 1 / 0


class Silent:
    def __call__(self, images_NHWC, prompts):
        return np.full(len(prompts), np.nan)


class Flat:
    def __call__(self, images_NHWC, prompts):
        return 3.0


class Answers:
    columns = ("answer",)

    def __call__(self, images_NHWC, prompts, rows):
        return np.array([row["answer"] for row in rows])


def test_a_scorer_that_reads_rows_gets_one():
    settings = ScorerSettings(name="mine", scorer=f"{__name__}:Answers")
    assert "Answers: 7 for a grey image" in probe(settings, 8, 8, "what is 3 + 4?", {"answer": 7})


def test_a_local_scorer_scores_an_image_and_its_time_is_said():
    said = tried("jpeg_size")
    assert re.fullmatch(r"jpeg_size: [\d.]+ for a grey image; loaded in \d+\.\d s, scored in \d+\.\d s", said)
    assert tried("ocr").startswith("ocr: 0 for a grey image")
    assert tried(f"{__name__}:Silent").startswith(f"{__name__}:Silent: no score for a grey image")


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("Broken", "scorer `mine` fails: ZeroDivisionError: division by zero"),
        ("Flat", r"scorer `mine` returned scores of shape \(\) for 1 images; return one number for each"),
        ("Answers", "scorer `mine` has no score for `a grey wall.*`: its row has no `answer`"),
        ("Missing", "check the import path"),
    ],
)
def test_a_local_scorer_that_does_not_work_is_a_sentence(scorer, message):
    with pytest.raises(UserError, match=message):
        tried(f"{__name__}:{scorer}")


def test_a_remote_pool_is_reached_with_its_token_and_has_the_scorer(pool_url, monkeypatch, tmp_path, serve):
    with pytest.raises(UserError, match=r"answered 401.*set options\.token_file or TEMPFLOW_TOKEN"):
        tried("remote", url=pool_url, scorer="size")
    monkeypatch.setenv("TEMPFLOW_TOKEN", "right")
    assert tried("remote", url=pool_url, scorer="size") == f"remote: {pool_url} has size"
    with pytest.raises(UserError, match="one of size"):
        tried("remote", url=pool_url, scorer="beauty")
    with pytest.raises(UserError, match="no token in"):
        tried("remote", url=pool_url, scorer="size", token_file=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"not a list of scorers.*; start it, or set options\.url"):
        tried("remote", url=f"{serve((200, {}, b'hello')).url}/401", scorer="size")  # 401 is no status here


def test_a_detector_is_asked_once(serve):
    server = serve(NOTHING_SEEN)
    said = tried("geneval", url=server.url)
    assert re.fullmatch(rf"geneval: the detector at {server.url} answers in \d+\.\d s", said)
    (asked,) = server.asked
    assert len(json.loads(asked[1])["images"]) == 1
    for answer, message in (
        ((503, {}, b"loading"), "answered 503: loading; start the detector"),
        ((200, {}, b"{}"), "not a list of detections"),
    ):
        server = serve(answer)
        with pytest.raises(UserError, match=message):
            tried("geneval", url=server.url)
        assert len(server.asked) == 1
