"""The warnings of a run: those in its metrics, and those in the logs of its processes."""

import json
from collections import deque
from dataclasses import dataclass
from datetime import datetime

MAX_WARNINGS = 50
"""The newest warnings of a source that are kept, and those of all sources that are shown."""
WARNING_LEVELS = {"WARNING", "ERROR", "CRITICAL"}
RUN = "run"
"""The source of the warnings in the metrics."""


@dataclass(frozen=True)
class Warned:
    """A warning of the run or of one of its processes."""

    time: float
    """Unix time, in seconds."""
    step: int | None
    source: str
    """RUN, or the name of the log file."""
    message: str


class NewestWarnings:
    """The newest warnings of each source."""

    def __init__(self) -> None:
        self._found: dict[str, deque[Warned]] = {}

    def add(self, warned: Warned) -> None:
        self._found.setdefault(warned.source, deque(maxlen=MAX_WARNINGS)).append(warned)

    def forget(self, source: str) -> None:
        self._found.pop(source, None)

    def newest(self) -> list[Warned]:
        """The newest warnings, the newest first. What the run says in its metrics and in a log is shown once."""
        said = {warned.message for warned in self._found.get(RUN, ())}
        every = [w for source, found in self._found.items() for w in found if source == RUN or w.message not in said]
        return sorted(every, key=lambda warned: -warned.time)[:MAX_WARNINGS]


def warned_in(text: bytes, source: str) -> Warned | None:
    """The warning that a line of a log says; None if the line is no warning or cannot be read."""
    if b"WARNING" not in text and b"ERROR" not in text and b"CRITICAL" not in text:
        return None
    try:
        line = json.loads(text)
        if line["level"] not in WARNING_LEVELS:
            return None
        step = line.get("step")
        time = datetime.fromisoformat(str(line["time"])).timestamp()
        return Warned(time, step if type(step) is int else None, source, str(line["message"]))
    except (ValueError, TypeError, KeyError):
        return None
