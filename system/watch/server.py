"""The page of a run and its data over HTTP, on loopback. Nothing can be changed through it.

Who can reach it: processes of this machine. A page of another site that the browser has open cannot: requests with a
Host header other than loopback are refused (DNS rebinding), and no answer allows another origin. No request names a
file: steps, rows and indices are whole numbers.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from services.base.errors import UserError, first_line
from services.http.images import kind_of
from system.watch.reader import Reader

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
HOSTS = {LOOPBACK, "localhost", "[::1]"}
"""The names under which the page may be asked for. A forwarded port may be any."""
MAX_DIGITS = 12
"""Longer numbers in a request are refused."""
TIMEOUT_S = 30
"""Seconds a connection may be silent."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
JSON = "application/json; charset=utf-8"
CACHED = "private, max-age=3600"
"""For pictures. Their addresses have the revision of the file in them."""


class Answer(NamedTuple):
    """The body of an answer and its type."""

    body: bytes
    kind: str
    cached: bool = False


class NotThere(Exception):
    """Nothing is there, or not yet."""


class BadRequest(Exception):
    """A parameter is missing or not a number. The message names it."""


class PageServer(ThreadingHTTPServer):
    """Serves the page of one run until `shutdown`.

    Args:
        port: 0 for any free port.

    Raises:
        UserError: the port is taken, or may not be used.
    """

    daemon_threads = True

    def __init__(self, reader: Reader, port: int) -> None:
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} cannot be used ({first_line(error)}); choose another with --port") from error
        self.reader = reader
        self.lock = threading.Lock()
        """Held while the reader is used."""

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that has left is no error."""
        log.debug("a connection ended", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "tempflow", ""
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, with_body: bool) -> None:
        host = (self.headers.get("Host") or "").strip().lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name not in HOSTS:
            return self._say(
                HTTPStatus.FORBIDDEN, f"this page is asked for by the name {LOOPBACK} or localhost", with_body
            )
        parts = urlsplit(self.path)
        route = ROUTES.get(parts.path)
        if route is None:
            return self._say(HTTPStatus.NOT_FOUND, "there is no such page", with_body)
        try:
            with self.server.lock:
                answer = route(self.server.reader, dict(parse_qsl(parts.query, max_num_fields=8)))
        except BadRequest as error:
            return self._say(HTTPStatus.BAD_REQUEST, str(error), with_body)
        except NotThere:
            return self._say(HTTPStatus.NOT_FOUND, "nothing is there, or not yet", with_body)
        except ValueError:
            return self._say(HTTPStatus.BAD_REQUEST, "the request has too many parameters", with_body)
        except Exception as error:
            log.warning("%s could not be answered", parts.path, exc_info=True)
            said = f"the run folder cannot be read: {first_line(error)}"
            return self._say(HTTPStatus.INTERNAL_SERVER_ERROR, said, with_body)
        return self._send(HTTPStatus.OK, answer, with_body)

    def _say(self, status: HTTPStatus, sentence: str, with_body: bool) -> None:
        self._send(status, _json({"error": sentence}), with_body)

    def _send(self, status: HTTPStatus, answer: Answer, with_body: bool) -> None:
        self.send_response(status)
        cache = CACHED if answer.cached else "no-store"
        length = {"Content-Type": answer.kind, "Content-Length": str(len(answer.body)), "Cache-Control": cache}
        for key, value in (HEADERS | length).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


def _json(content: object) -> Answer:
    return Answer(json.dumps(content, allow_nan=False).encode(), JSON)


def _picture(content: bytes | None) -> Answer:
    if content is None:
        raise NotThere
    return Answer(content, f"image/{kind_of(content)}", cached=True)


def _asset(package: str, name: str) -> Callable[[Reader, Mapping[str, str]], Answer]:
    kind = TYPES[name.rsplit(".", 1)[1]]
    return lambda _, __: Answer(files(package).joinpath(name).read_bytes(), kind)


def _whole(query: Mapping[str, str], name: str) -> int:
    """A parameter as a whole number from 0.

    Raises:
        BadRequest: it is missing, or is none.
    """
    text = query.get(name, "")
    if not (text.isascii() and text.isdigit()) or len(text) > MAX_DIGITS:
        raise BadRequest(f"`{name}` must be a whole number")
    return int(text)


def _run(reader: Reader, query: Mapping[str, str]) -> Answer:
    reader.poll()
    if "revision" in query and _whole(query, "revision") == reader.revision:
        return _json({"revision": reader.revision, "state": reader.state(time.time())})
    return _json(reader.overview(time.time()))


def _step(reader: Reader, query: Mapping[str, str]) -> Answer:
    return _found(reader.step(_whole(query, "step")))


def _task(reader: Reader, query: Mapping[str, str]) -> Answer:
    return _found(reader.task(_whole(query, "step"), _whole(query, "row")))


def _found(content: dict[str, Any] | None) -> Answer:
    if content is None:
        raise NotThere
    return _json(content)


ROUTES: Mapping[str, Callable[[Reader, Mapping[str, str]], Answer]] = {
    "/": _asset("system.watch", "page.html"),
    "/page.js": _asset("system.watch", "page.js"),
    "/figures.js": _asset("system.watch", "figures.js"),
    "/page.css": _asset("system.watch", "page.css"),
    "/style.css": _asset("system.report", "style.css"),
    "/api/run": _run,
    "/api/step": _step,
    "/api/task": _task,
    "/api/prompts": lambda reader, _: _json(reader.prompts()),
    "/api/samples": lambda reader, query: _json(reader.samples(_whole(query, "step"))),
    "/picture": lambda reader, query: _picture(
        reader.picture(_whole(query, "step"), _whole(query, "row"), _whole(query, "leaf"))
    ),
    "/sample": lambda reader, query: _picture(reader.sample_file(_whole(query, "step"), _whole(query, "index"))),
}
