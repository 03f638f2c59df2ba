"""metrics.jsonl has one line per step, and each line is a JSON object. Torn lines are skipped when it is read."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.base.storage import append, write_atomically

Line = dict[str, Any]


@dataclass(frozen=True)
class MetricsFile:
    """Reads and writes one run's metrics."""

    path: Path

    def read(self) -> list[Line]:
        """The intact lines in the order of their steps. If a step has several lines, the latest is used."""
        by_step = {line["step"]: line for line in map(parsed, self._texts()) if line is not None}
        return [by_step[step] for step in sorted(by_step)]

    def append(self, line: Line) -> None:
        append(self.path, _text(line).encode() + b"\n")

    def amend(self, extra: Line) -> Line:
        """Add keys to the line of the last step. Returns the line without them."""
        last = self.read()[-1]
        texts = [text for text in self._texts() if (line := parsed(text)) is None or line["step"] != last["step"]]
        self._write([*texts, _text(last | extra)])
        return last

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps and a torn end of the file.

        Torn lines before the last kept line stay, because a person may still be able to read something in them.
        """
        texts, stays = self._texts(), 0
        kept: list[str] = []
        for text in texts:
            line = parsed(text)
            if line is None or line["step"] <= step:
                kept.append(text)
            if line is not None and line["step"] <= step:
                stays = len(kept)
        self._write(kept[:stays])

    def _texts(self) -> list[str]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="surrogateescape")
        return [line for line in text.split("\n") if line]

    def _write(self, texts: Iterable[str]) -> None:
        """Replace the file if the content differs."""
        content = "".join(text + "\n" for text in texts).encode("utf-8", errors="surrogateescape")
        if (self.path.read_bytes() if self.path.exists() else b"") != content:
            write_atomically(self.path, content)


def missing_steps(lines: list[Line], last: int) -> str | None:
    """The steps from 0 to `last` that have no line, such as `3, 5–9`; None if no line is missing."""
    steps = {line["step"] for line in lines}
    ranges: list[list[int]] = []
    for step in range(last + 1):
        if step in steps:
            continue
        if ranges and ranges[-1][1] == step - 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in ranges) or None


def parsed(text: str | bytes) -> Line | None:
    """The line as an object, or None if it is torn: it is not JSON, or not an object with a step."""
    try:
        line = json.loads(text.encode() if isinstance(text, str) else text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and type(line.get("step")) is int else None


def _text(line: Line) -> str:
    return json.dumps(_plain(line))


def _plain(value: Any) -> Any:
    """Make values fit for JSON. NaN and infinity, which JSON lacks, become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
