"""Asking again until something is there."""

import logging
import math
import random
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.5
TELL_AFTER_S = 10.0
"""What takes less is not worth a line in the log."""


class Away(Exception):
    """What was asked does not answer now, or has no room; the same question may be answered later."""

    after_s = 0.0
    """It wants no question for this long."""


def patiently(ask: Callable[[], T], missing: type[Exception], timeout_s: float, longest_s: float = POLL_S) -> T:
    """What `ask` returns; while it raises `missing` it is called again, until the time is up.

    Pauses double from `POLL_S` to `longest_s` and have jitter; none is shorter than what an `Away` asks for, and the
    last question comes when the time is up.

    Raises:
        missing: it still did.
    """
    began, told, pause_s = time.monotonic(), False, POLL_S
    while True:
        try:
            answer = ask()
        except missing as error:
            waited_s = time.monotonic() - began
            if waited_s >= timeout_s:
                raise
            if not told and waited_s > TELL_AFTER_S:
                how_long = "" if math.isinf(timeout_s) else f"up to {timeout_s:.0f} s "
                log.warning("%s; waiting %sfor it", error, how_long)
                told = True
            asked_s = error.after_s if isinstance(error, Away) else 0.0
            wait_s = max(pause_s * random.uniform(0.5, 1), asked_s)
        else:
            if told:
                log.warning("the wait is over, after %.0f s", time.monotonic() - began)
            return answer
        time.sleep(min(wait_s, timeout_s - waited_s))
        pause_s = min(2 * pause_s, longest_s)
