"""What a run has left in its folder, read as the tests compare it."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.command_line import RUN_TIMEOUT_S


def adapter(run: Path, step: int = 4) -> bytes:
    return (run / "checkpoints" / f"step_{step:06d}" / "trained.safetensors").read_bytes()


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_for_steps(process: subprocess.Popen[Any], run: Path, steps: int, said: Callable[[], str]) -> None:
    """Wait until the run of a process has done so many steps; if it ends before, fail with what `said` returns."""
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 1 + steps:
        assert process.poll() is None, said()
        assert time.monotonic() < deadline
        time.sleep(0.01)


TIMES = ("warnings", "time", "elapsed_s", "seconds/", "idle/", "bytes/images_peak")


def figures(run: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in metrics(run)]
