"""Models on a hub: a loopback server plays one that asks for a token."""

import json
import os
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from services.base.errors import UserError
from services.base.paths import hub_answers, model_file

TOKEN = "hf_opens_the_gate"
INDEX = json.dumps({"_class_name": "StableDiffusion3Pipeline"}).encode()
ASK = "from actors.policy.model_files import pipeline_name; print(pipeline_name('{model}'))"


class Hub(BaseHTTPRequestHandler):
    """`org/open` is public, `org/gated` asks for TOKEN, nothing else exists."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        allowed = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if self.path == "/org/open/resolve/main/model_index.json" or ("/org/gated/" in self.path and allowed):
            self.send_response(200)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(INDEX)))
            self.end_headers()
            self.wfile.write(INDEX if with_body else b"")
            return
        self.send_response(401 if "/org/gated/" in self.path else 404)
        self.send_header("X-Error-Code", "GatedRepo" if "/org/gated/" in self.path else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ask(hub: str, cache, model: str, token: str | None) -> str:
    """The pipeline's name, or the last line of the error, in a process that knows this hub only."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(cache), **({"HF_TOKEN": token} if token else {})}
    command = [sys.executable, "-c", ASK.format(model=model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def test_a_gated_model_opens_with_the_token_of_the_environment(hub, tmp_path):
    assert ask(hub, tmp_path, "org/gated", TOKEN) == "StableDiffusion3Pipeline"


@pytest.mark.parametrize("token", [None, "hf_of_someone_else"])
def test_without_it_the_error_says_what_to_do(hub, tmp_path, token):
    said = ask(hub, tmp_path, "org/gated", token)
    assert "`org/gated` is gated; accept its licence on the hub, and set HF_TOKEN" in said


def test_an_open_model_needs_no_token_and_a_missing_one_is_named(hub, tmp_path):
    assert ask(hub, tmp_path, "org/open", None) == "StableDiffusion3Pipeline"
    assert "no folder `org/missing` here" in ask(hub, tmp_path, "org/missing", None)


def test_a_folder_without_the_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        model_file("scorer x", str(tmp_path), "config.json")


def test_a_hub_that_is_away_is_a_sentence_at_once_and_is_asked_once(monkeypatch, caplog, tmp_path):
    """The hub's client would ask five times for each file, with a line of its log for each."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub_answers.cache_clear()
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(UserError, match=rf"no folder `org/model` here, the hub at {nobody} does not answer"):
            model_file("policy.model", "org/model", "model_index.json")
    assert time.monotonic() - began < 5
    assert [record.name for record in caplog.records] == ["services.base.paths"]
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    hub_answers.cache_clear()
