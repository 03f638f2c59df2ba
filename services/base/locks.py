"""A lock that lets one process work at a time."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.base.errors import UserError, first_line
from services.base.patience import patiently

log = logging.getLogger(__name__)

WAIT_S = 100
"""Seconds to wait for a process that is stopping. An NFS server releases the locks of a lost node after 90 s."""


class InUse(UserError):
    """Another process has the lock."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an advisory lock on a file. The lock ends with the process at the latest.

    On a file system without locks (some mounts of buckets) no process is kept out, and the log says so.

    Raises:
        InUse: another process still has the lock after `WAIT_S` seconds. The message names `what`.
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
        log.warning("this file system has no locks, so a second process is not kept out: %s", first_line(error))
