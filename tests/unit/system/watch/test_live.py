"""The page that the training process serves itself: it answers at once, closes at the end, and is no reason to fail."""

import http.client
import logging
import threading
from http.server import ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from system.watch.live import live_page
from tests.helpers.watched_runs import write_config


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has just begun."""
    write_config(tmp_path / "mine")
    return tmp_path / "mine"


def status(url: str, host: str | None = None) -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("GET", "/api/run", headers={"Host": host} if host else {})
        return connection.getresponse().status
    finally:
        connection.close()


def test_it_is_open_as_long_as_the_run_and_refuses_other_names(run):
    with live_page(run) as url:
        assert urlsplit(url).hostname == "127.0.0.1"
        assert status(url) == 200
        assert status(url, "evil.example") == 403
    with pytest.raises(ConnectionRefusedError):
        status(url)
    assert "live page" not in [thread.name for thread in threading.enumerate()]


def test_it_closes_when_the_run_fails(run):
    with pytest.raises(ZeroDivisionError), live_page(run) as url:
        raise ZeroDivisionError
    with pytest.raises(ConnectionRefusedError):
        status(url)


def test_two_runs_of_one_machine_have_a_page_each(run):
    with live_page(run) as one, live_page(run) as two:
        assert one != two
        assert (status(one), status(two)) == (200, 200)


def test_a_port_that_cannot_be_had_is_a_warning(run, monkeypatch, caplog):
    def refuse(server):
        raise OSError("Address not available")

    monkeypatch.setattr(ThreadingHTTPServer, "server_bind", refuse)
    with caplog.at_level(logging.WARNING), live_page(run) as url:
        assert url is None
    assert caplog.messages == [f"there is no live page (Address not available); tempflow watch {run} shows the run"]
