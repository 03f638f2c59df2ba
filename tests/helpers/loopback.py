"""A real HTTP server on loopback that answers from a script, and a clock that waits without time."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

HANG = "no answer until the server ends"


class Loopback:
    """Gives its answers, one after the other, the last one again and again.

    An answer is (status, headers, body), or a function that makes it from the request's body, or `HANG`. A port that is
    given is taken over.
    """

    def __init__(self, *answers: object, port: int = 0) -> None:
        self.answers, self.asked, self.over = list(answers), [], threading.Event()
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                served.asked.append((self.path, body))
                answer = served.answers.pop(0) if len(served.answers) > 1 else served.answers[0]
                if answer == HANG:
                    served.over.wait(60)
                    return
                status, headers, content = answer(body) if callable(answer) else answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


class Clock:
    """In the place of the module `time`: sleeping takes no time, and moves the clock.

    Args:
        at: called once, when the clock has reached the key's second.
    """

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, []
        self.at: dict[float, Callable[[], None]] = {}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        for due in [second for second in self.at if second <= self.now]:
            self.at.pop(due)()


@pytest.fixture
def serve() -> Iterator[Callable[..., Loopback]]:
    """Starts servers with these answers, and ends them after the test."""
    servers = []

    def start(*answers: object, port: int = 0) -> Loopback:
        servers.append(Loopback(*answers, port=port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
