"""One process at a time."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.base.errors import UserError
from services.base.patience import patiently

log = logging.getLogger(__name__)

WAIT_S = 100
"""For a process that is being stopped. An NFS server lets go of a lost node's locks after 90 s."""


class InUse(UserError):
    """Another process has the lock."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds an advisory lock on the file, which ends with the process at the latest.

    A file system without locks (some mounts of buckets) keeps nobody out; the log says so.

    Raises:
        InUse: another process has had the lock on `what` for `WAIT_S` seconds.
    """
    with path.open("a") as file:
        patiently(lambda: _take(file.fileno(), what), InUse, WAIT_S)
        yield


def _take(descriptor: int, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InUse(f"{what} is in use by another process, which must end first") from error
    except OSError as error:
        log.warning("no lock keeps a second process out: %s", error)
