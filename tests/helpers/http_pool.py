"""A running `tempflow serve`, and requests as its callers send them."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import requests
import yaml

from services.base.ports import free_port
from tests.helpers.command_line import environment

START_TIMEOUT_S = 120
TOKEN = "a token of the pool"
SCORERS = '''
import os, time
import numpy as np

class Slow:
    """Mean brightness, in its own time; ends its process when the prompt says so, raises when it says so.

    If rows are sent, the score is the brightness times the column `times`, and the brightness is a sub-score.
    """

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __call__(self, images, prompts, rows):
        time.sleep(self.seconds)
        for prompt in prompts:
            if prompt.startswith("die") and not os.path.exists(prompt[4:]):
                open(prompt[4:], "w").close()
                os._exit(1)
            if prompt == "raise":
                raise ValueError("no")
        score = images.mean(axis=(1, 2, 3)) / 255
        score = np.where([prompt == "nan" for prompt in prompts], np.nan, score)
        if not any(rows):
            return score
        return {"score": score * [row.get("times", np.nan) for row in rows], "brightness": score}
'''


def grey(value: int, size: int = 8) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


@contextmanager
def serving(folder, scorers: list[dict], **settings):
    """A running `tempflow serve`: its address."""
    (folder / "slow.py").write_text(SCORERS)
    settings = {"port": free_port(), **settings}
    recipe = folder / "pool.yaml"
    recipe.write_text(yaml.safe_dump({"scorers": scorers, "serve": settings}))
    command = [sys.executable, "-m", "system", "serve", str(recipe)]
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{settings['port']}"
    try:
        wait_until(lambda: process.poll() is not None or answers(url), START_TIMEOUT_S)
        assert process.poll() is None, (folder / "serve.log").read_text()
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130, (folder / "serve.log").read_text()


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).ok
    except (requests.ConnectionError, requests.Timeout):
        return False


def wait_until(true, timeout_s: float, every_s: float = 0.2) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(every_s)


def post(
    url: str, body: bytes, token: str = TOKEN, kind: str = "application/json", query: str = ""
) -> requests.Response:
    headers = {"Content-Type": kind, "Authorization": f"Bearer {token}"}
    return requests.post(f"{url}/v1/score{query}", data=body, headers=headers, timeout=60)


def as_json(*pairs) -> bytes:
    items = [{"prompt": prompt, "image": base64.b64encode(data).decode()} for prompt, data in pairs]
    return json.dumps({"items": items}).encode()
