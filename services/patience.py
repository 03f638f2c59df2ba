"""Asking again until something is there."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.5
TELL_AFTER_S = 10.0
"""What takes less is not worth a line in the log."""


def patiently(ask: Callable[[], T], missing: type[Exception], timeout_s: float) -> T:
    """What `ask` returns; while it raises `missing` it is called again, until the time is up. The log says what is
    missing, and again when that changes.

    Raises:
        missing: it still did.
    """
    began, told = time.monotonic(), ""
    while True:
        try:
            return ask()
        except missing as error:
            waited_s = time.monotonic() - began
            if waited_s + POLL_S > timeout_s:
                raise
            if str(error) != told and waited_s > TELL_AFTER_S:
                log.warning("%s; waiting up to %.0f s for it", error, timeout_s - waited_s)
                told = str(error)
        time.sleep(POLL_S)
