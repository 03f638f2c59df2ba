"""A real browser without a screen, driven over its debugging pipe: no driver, no port, no package."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed, none of {', '.join(NAMES)}")
WAIT_MS = 30_000
START = """
import os, sys
read, write = (os.dup2(int(place), number) for place, number in zip(sys.argv[1:3], (13, 14)))
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes the browser, which reads commands from descriptor 3 and writes answers to descriptor 4."""


class Page:
    """A tab of the browser.

    Attributes:
        errors: what the page wrote to the console as errors, exceptions and refusals of its Content-Security-Policy.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._number, self._rest = 0, b""
        self._session: str | None = None
        self.errors: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Set the window's size, and whether the reader prefers dark pages."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression. A promise is awaited.

        Raises:
            AssertionError: the expression raises.
        """
        done = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait until a JavaScript expression is true, and return it.

        Raises:
            AssertionError: it does not become true.
        """
        return self.run(
            f"new Promise((done, failed) => {{ const began = Date.now(); (function look() {{"
            f"let value; try {{ value = ({condition}); }} catch (error) {{ value = false; }}"
            f"if (value) done(value); else if (Date.now() - began > {WAIT_MS}) failed({json.dumps(condition)});"
            "else setTimeout(look, 50); })(); })"
        )

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page in a browser of its own, which ends with the block.

    Args:
        folder: for the browser's profile.
    """
    assert BROWSER is not None
    theirs_read, ours_write = os.pipe()
    ours_read, theirs_write = os.pipe()
    options = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars"]
    options += ["--no-sandbox", f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]
    start = [sys.executable, "-c", START, str(theirs_read), str(theirs_write), BROWSER, *options]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(start, pass_fds=(theirs_read, theirs_write), stdout=quiet, stderr=quiet)
    os.close(theirs_read)
    os.close(theirs_write)
    try:
        yield Page(ours_write, ours_read)
    finally:
        os.close(ours_write)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_read)
