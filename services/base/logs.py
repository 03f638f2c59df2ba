"""The log file of a process: JSON lines that name the process that wrote them."""

import json
import logging
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from services.base.errors import cause_of, first_line
from services.base.plain import printable_lines

log = logging.getLogger(__name__)

HOST = platform.node()

_context: ContextVar[Mapping[str, Any]] = ContextVar("log_context", default=MappingProxyType({}))
"""The place in the run, such as step and task, of the code that logs. A new thread has none."""


class JsonLines(logging.Formatter):
    """Writes a log record as one JSON object.

    Its keys are `time` (ISO 8601, UTC), `level`, `logger`, `host`, `pid`, `message`, those that describe the process
    (`fields`), those of the place in the run (`at`), and `exception` with the traceback.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.fields = fields

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "host": HOST,
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
    """The log file of a process, and the keys that describe the process in each line."""

    path: Path
    run: str
    role: str
    more: Mapping[str, str | int] = field(default_factory=dict)
    """The rank, slot or scorer of the process."""


class _FileHandler(logging.FileHandler):
    """Prints a line to stderr if it cannot be written to the file, for example because the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            print(f"{self.baseFilename}: {first_line(error)}; not logged: {record.getMessage()}", file=sys.stderr)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            print(f"{self.baseFilename}: {first_line(error)}", file=sys.stderr)


class ScreenHandler(logging.Handler):
    """Prints warnings and errors to the `sys.stderr` of that moment, so that a live table of Rich stays below them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(printable_lines(self.format(record)), file=sys.stderr)
        except Exception:
            self.handleError(record)


def log_to(file: LogFile) -> logging.Handler:
    """Send this process's log (INFO and above) to a file. The file and its folder are made."""
    file.path.parent.mkdir(parents=True, exist_ok=True)
    handler = _FileHandler(file.path)
    handler.setFormatter(JsonLines(run=file.run, role=file.role, **file.more))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler


@contextmanager
def logging_to(file: LogFile) -> Iterator[None]:
    """Like `log_to`, but only within the context. An exception that ends the context is also logged."""
    handler = log_to(file)
    try:
        yield
    except BaseException as error:
        said = f"ended by {type(cause_of(error)).__name__}: {first_line(error)}"
        handler.handle(log.makeRecord(__name__, logging.CRITICAL, __file__, 0, said, (), sys.exc_info()))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


@contextmanager
def at(**place: Any) -> Iterator[None]:
    """Within the context, add keys such as `step` and `task` to the lines that this thread logs."""
    token: Token[Mapping[str, Any]] = _context.set({**_context.get(), **place})
    try:
        yield
    finally:
        _context.reset(token)
