"""Where a process of the system writes its log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to(file: str | Path | None) -> logging.Handler | None:
    """Send this process's log (INFO and above) to `file`, made with its folder; None leaves logging as it is."""
    if file is None:
        return None
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler


@contextmanager
def logging_to(file: Path) -> Iterator[None]:
    """The same for as long as the context lasts."""
    handler = log_to(file)
    assert handler is not None
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
