"""Shows a run's progress: a live table on a terminal, one line per step elsewhere."""

import math
import time
from collections import deque
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.base.plain import plain

SHOWN = 12
"""Steps shown on a terminal."""


class Progress:
    """Shows the progress of a run. Use as a context manager.

    Args:
        steps: training steps of the whole run.
    """

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.steps = steps
        self.began = time.monotonic()
        self.at = 0
        self.done, self.done_s = 0, 0.0
        self.lines: deque[dict[str, Any]] = deque(maxlen=SHOWN)
        self.now = Text("starting the roles")
        self.live = Live(self._view(), console=self.console, refresh_per_second=4) if self.console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.update(self._view())
            self.live.stop()

    def stage(self, step: int, name: str, done: int = 0, of: int = 0) -> None:
        """Show the current stage within a step."""
        count = f" {done}/{of}" if of else ""
        self.now = Text(f"step {step}/{self.steps}: {name}{count}")
        if self.live:
            self.live.update(self._view())

    def restored(self, step: int) -> None:
        """Show that the run continues after a step. Without a step, nothing is shown."""
        self.at = step
        if step:
            over = "; nothing is left to train, a larger `steps` trains longer" if step >= self.steps else ""
            self.console.print(f"continues    after step {step} of {self.steps}{over}", highlight=False, soft_wrap=True)

    def finished(self, line: dict[str, Any]) -> None:
        """Show the metrics of a finished step."""
        self.at = line["step"]
        if "seconds/step" in line:
            self.done += 1
            self.done_s += line["seconds/step"]
        self.lines.append(line)
        if self.live:
            self.live.update(self._view())
        else:
            self.console.print(plain(describe(line, self.steps, self.time_left_s())), soft_wrap=True)

    def time_left_s(self) -> float | None:
        """The remaining time, estimated from the steps that this process has done; None before any, and at the end."""
        return (self.steps - self.at) * self.done_s / self.done if self.done and self.at < self.steps else None

    def _view(self) -> Group:
        table = Table(box=None, header_style="bold", padding=(0, 1))
        columns = ["step", "reward", "held out", "drift", "NFE", "generate", "score", "update", "export", "step s"]
        for column in columns:
            table.add_column(column, justify="right")
        for line in self.lines:
            table.add_row(*map(plain, _cells(line)))
        left = self.time_left_s()
        bar = ProgressBar(total=self.steps, completed=self.at, width=40)
        status = Text.assemble(self.now, ("" if left is None else f"   about {minutes(left)} left", "dim"))
        return Group(table, bar, status)


def _cells(line: dict[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        value = line.get(key)
        return "" if value is None or math.isnan(value) else format(value, form)

    return [
        str(line["step"]),
        " ".join(f"{value:.4f}" for value in rewards(line).values()),
        " ".join(f"{name} {value:.3f}" for name, value in heldout(line).items()),
        number("drift/mean", ".1e"),
        number("nfe", ","),
        *[number(f"seconds/{stage}", ".1f") for stage in ("generate", "score", "update", "export", "step")],
    ]


def rewards(line: dict[str, Any]) -> dict[str, float]:
    """Mean training reward by scorer."""
    return {
        key.split("/")[1]: line[key]
        for key in line
        if key.startswith("reward/") and key.count("/") == 2 and key.endswith("/mean")
    }


def heldout(line: dict[str, Any]) -> dict[str, float]:
    """Mean held-out score by scorer, without the scores by category."""
    return {key.split("/")[1]: line[key] for key in line if key.startswith("eval/") and key.count("/") == 1}


def describe(line: dict[str, Any], steps: int, left_s: float | None) -> str:
    """One step's metrics as a line of text."""
    parts = [f"step {line['step']}/{steps}"]
    parts += [f"{name} {value:.4f}" for name, value in rewards(line).items()]
    parts += [f"held-out {name} {value:.3f}" for name, value in heldout(line).items()]
    if not math.isnan(line.get("drift/mean", math.nan)):
        parts.append(f"drift {line['drift/mean']:.1e}")
    parts.append(f"NFE {line['nfe']:,}")
    stages = ("generate", "score", "update", "export", "eval")
    parts.append(" ".join(f"{s} {line[f'seconds/{s}']:.1f}s" for s in stages if f"seconds/{s}" in line))
    if left_s is not None:
        parts.append(f"about {minutes(left_s)} left")
    return " | ".join(parts)


def minutes(seconds: float) -> str:
    whole, rest = divmod(round(seconds), 60)
    return f"{whole} min {rest:02d} s" if whole else f"{rest} s"
