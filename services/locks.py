"""One process at a time."""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.errors import UserError

log = logging.getLogger(__name__)

WAIT_S = 100
"""For a process that is being stopped. An NFS server lets go of a lost node's locks after 90 s."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds an advisory lock on the file, which ends with the process at the latest.

    A file system without locks (some mounts of buckets) keeps nobody out; the log says so.

    Raises:
        UserError: another process has had the lock on `what` for `WAIT_S` seconds.
    """
    with path.open("a") as file:
        deadline = time.monotonic() + WAIT_S
        told = False
        while not _taken(file.fileno()):
            if time.monotonic() >= deadline:
                raise UserError(f"{what} is in use by another process; stop that one first, or wait for its end")
            if not told:
                log.warning("%s is in use by another process; waiting up to %d s for its end", what, WAIT_S)
                told = True
            time.sleep(0.2)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("no lock keeps a second process out: %s", error)
    return True
