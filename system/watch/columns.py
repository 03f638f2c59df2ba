"""The metrics of all steps as columns of numbers, and a long curve in few points."""

import math
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from system.report.data import number

MAX_POINTS = 400
"""A curve of more steps is drawn as the mean, minimum and maximum of this many stretches of steps."""
RECENT = 12
"""Whole lines that are kept."""


@dataclass(frozen=True)
class Curve:
    """The finite values of a key. Of a long run, each point is a stretch of steps."""

    steps: list[int]
    """The step, or the last step of the stretch."""
    values: list[float]
    """The value, or the mean of the stretch."""
    low: list[float]
    high: list[float]
    """The smallest and the greatest value of the stretch. Both are empty if each point is a step."""


@dataclass
class Columns:
    """The numbers of metrics.jsonl by key. 10,000 steps of 100 keys take 8 MB."""

    steps: array = field(default_factory=lambda: array("q"))
    values: dict[str, array] = field(default_factory=dict)
    """One value for each step; NaN where the line has none."""
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The last lines, whole."""

    def add(self, line: dict[str, Any]) -> None:
        """Add the line of a step. A line of an earlier step means that the steps from it on are made again."""
        step = line["step"]
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            for column in self.values.values():
                column.pop()
        while self.recent and self.recent[-1]["step"] >= step:
            self.recent.pop()
        for key, value in line.items():
            if (known := number(value)) is not None:
                if key not in self.values:
                    self.values[key] = array("d", [math.nan] * len(self.steps))
                self.values[key].append(known)
        self.steps.append(step)
        for column in self.values.values():
            if len(column) < len(self.steps):
                column.append(math.nan)
        self.recent.append(line)

    def keys(self, prefix: str, slashes: int | None = None) -> list[str]:
        """The names of the columns that begin with `prefix`; if `slashes` is given, only those with so many of them."""
        keys = [key for key in self.values if key.startswith(prefix)]
        return [key for key in keys if slashes is None or key.count("/") == slashes]

    def last(self, key: str) -> float | None:
        """The latest value of a key; None if it has none."""
        return next((value for value in reversed(self.values.get(key, array("d"))) if not math.isnan(value)), None)

    def curve(self, key: str) -> Curve:
        """The curve of a key; empty if the key has no number."""
        steps_N = np.array(self.steps, np.int64)
        value_N = np.array(self.values.get(key, []), np.float64)
        known_N = ~np.isnan(value_N)
        steps_N, value_N = steps_N[: len(value_N)][known_N], value_N[known_N]
        if len(steps_N) <= MAX_POINTS:
            return Curve(steps_N.tolist(), value_N.tolist(), [], [])
        starts = np.arange(MAX_POINTS) * len(steps_N) // MAX_POINTS
        counts = np.diff([*starts, len(steps_N)])
        return Curve(
            steps_N[starts + counts - 1].tolist(),
            (np.add.reduceat(value_N, starts) / counts).tolist(),
            np.minimum.reduceat(value_N, starts).tolist(),
            np.maximum.reduceat(value_N, starts).tolist(),
        )
