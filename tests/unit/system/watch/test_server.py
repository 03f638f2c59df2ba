"""What the page's server answers, and what it refuses."""

import http.client
import json
import socket
import threading
from urllib.parse import quote

import psutil
import pytest

from services.base.errors import UserError
from system.watch.reader import Reader
from system.watch.server import ROUTES, PageServer
from tests.helpers.watched_runs import write_run


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with PageServer(Reader(write_run(tmp_path_factory.mktemp("runs") / "mine")), 0) as opened:
        threading.Thread(target=opened.serve_forever, args=(0.02,), daemon=True).start()
        yield opened
        opened.shutdown()


def ask(server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_it_listens_on_loopback_alone(server):
    ours = [c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.laddr.port == server.server_address[1]]
    assert set(ours) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/figures.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/style.css", "text/css"),
        ("/api/run", "application/json"),
        ("/api/step?step=1", "application/json"),
        ("/api/task?step=1&row=7", "application/json"),
        ("/api/prompts", "application/json"),
        ("/api/samples?step=0", "application/json"),
        ("/picture?step=1&row=7&leaf=0", "image/png"),
        ("/sample?step=0&index=0", "image/png"),
    ],
)
def test_every_answer_has_its_type_and_the_headers_that_confine_it(server, path, kind):
    status, headers, body = ask(server, path)
    assert (status, headers["Content-Type"].split(";")[0], int(headers["Content-Length"])) == (200, kind, len(body))
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers
    assert path.split("?")[0] in ROUTES
    if kind == "application/json":
        json.loads(body)


def test_what_is_not_new_is_not_sent_again(server):
    whole = json.loads(ask(server, "/api/run")[2])
    assert set(json.loads(ask(server, f"/api/run?revision={whole['revision']}")[2])) == {"revision", "state"}
    assert "panels" in json.loads(ask(server, f"/api/run?revision={whole['revision'] + 1}")[2])


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8800", "127.0.0.1.evil.example", "10.0.0.1:8800", "", "[::2]"]
)
def test_another_name_is_refused(server, host):
    """A page of another site whose name was bound to 127.0.0.1 sends its own name."""
    status, _, body = ask(server, "/api/run", Host=host)
    assert status == 403
    assert b"panels" not in body


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1:1", "LOCALHOST:80", "[::1]:8800", "[::1]"])
def test_loopback_by_any_port_is_answered(server, host):
    assert ask(server, "/api/run", Host=host)[0] == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../config.yaml", 404),
        ("/config.yaml", 404),
        ("/%2e%2e/config.yaml", 404),
        ("/page.html", 404),
        ("/sample?step=../..&index=0", 400),
        ("/sample?step=0&index=-1", 400),
        ("/sample?step=0&index=٣", 400),
        ("/sample?step=0", 400),
        ("/picture?step=1e3&row=7&leaf=0", 400),
        (f"/api/step?step={'9' * 5000}", 400),
        ("/api/run?" + "a=1&" * 50, 400),
        ("/api/step?step=99", 404),
        ("/picture?step=1&row=8&leaf=0", 404),
    ],
)
def test_what_is_not_there_or_not_a_number_is_refused(server, path, status):
    found, _, body = ask(server, quote(path, safe="/?&=%"))
    assert found == status
    assert json.loads(body)["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(server, method):
    assert ask(server, "/api/run", method)[0] == 501


def test_a_head_has_no_body(server):
    status, headers, body = ask(server, "/", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


def test_a_caller_that_hangs_up_or_says_nonsense_disturbs_nobody(server):
    for said in (b"", b"GET / HT", b"\x00\xff\r\n\r\n", b"GET /api/run HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with socket.create_connection(server.server_address[:2], timeout=5) as connection:
            connection.sendall(said)
    assert ask(server, "/api/run")[0] == 200


def test_a_storage_that_fails_is_an_error_with_a_sentence(server, monkeypatch):
    def fail(_):
        raise OSError("Stale file handle")

    monkeypatch.setattr(Reader, "poll", fail)
    status, _, body = ask(server, "/api/run")
    assert (status, json.loads(body)) == (500, {"error": "the run folder cannot be read: Stale file handle"})


def test_a_port_that_is_taken_is_named(server, tmp_path):
    with pytest.raises(UserError, match="--port"):
        PageServer(server.reader, server.server_address[1])
