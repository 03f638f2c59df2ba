"""Where a process of the system writes its log: JSON lines that say who wrote them."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

_context: ContextVar[Mapping[str, Any]] = ContextVar("log_context", default=MappingProxyType({}))
"""Where in a run the code that logs is; a thread begins with none."""


class JsonLines(logging.Formatter):
    """A record as one JSON object: `time` (ISO 8601, UTC), `level`, `logger`, `pid`, `message`, what the process is
    (`fields`), where it is (`at`), and `exception` with its traceback.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.fields = fields

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **self.fields,
            **_context.get(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class LogFile:
    """Where a process writes its log, and what each line says of the process, such as run, role and rank."""

    path: str
    fields: Mapping[str, str | int]


def log_to(file: LogFile | str | Path | None, **fields: Any) -> logging.Handler | None:
    """Send this process's log (INFO and above) to `file`, made with its folder; None leaves logging as it is.

    Args:
        fields: of every line, as those of a `LogFile`.
    """
    if file is None:
        return None
    if isinstance(file, LogFile):
        return log_to(file.path, **file.fields)
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(JsonLines(**fields))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler


@contextmanager
def logging_to(file: Path, **fields: Any) -> Iterator[None]:
    """The same for as long as the context lasts."""
    handler = log_to(file, **fields)
    assert handler is not None
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


@contextmanager
def at(**place: Any) -> Iterator[None]:
    """Lines that this thread logs in the context say where they come from, such as `step` and `task`."""
    token: Token[Mapping[str, Any]] = _context.set({**_context.get(), **place})
    try:
        yield
    finally:
        _context.reset(token)
