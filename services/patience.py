"""Asking again until something is there."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.5


def patiently(ask: Callable[[], T], missing: type[Exception], timeout_s: float) -> T:
    """What `ask` returns; while it raises `missing` it is called again, until the time is up.

    Raises:
        missing: it still did.
    """
    deadline, told = time.monotonic() + timeout_s, False
    while True:
        try:
            return ask()
        except missing as error:
            if time.monotonic() + POLL_S > deadline:
                raise
            if not told:
                log.warning("%s; waiting up to %.0f s for it", error, timeout_s)
                told = True
        time.sleep(POLL_S)
