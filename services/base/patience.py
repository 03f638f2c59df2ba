"""Repeats a question until there is an answer."""

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
"""Shorter waits are not logged."""


class Away(Exception):
    """A service does not answer now or is full. The same request may succeed later."""

    after_s = 0.0
    """Seconds to wait before the next request, as the service asks."""


def patiently(
    ask: Callable[[], T],
    missing: type[Exception],
    timeout_s: float,
    longest_s: float = POLL_S,
    level: int = logging.WARNING,
) -> T:
    """Call `ask` until it no longer raises `missing`, or the time is up. Returns its result.

    Pauses double from `POLL_S` to `longest_s` and have jitter. A pause is never shorter than `Away.after_s`. The last
    call is made when the time is up. A wait of more than `TELL_AFTER_S` is logged at `level`.

    Raises:
        missing: the last call still raised it.
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
                log.log(level, "%s; waiting %sfor it", error, how_long)
                told = True
            asked_s = error.after_s if isinstance(error, Away) else 0.0
            wait_s = max(pause_s * random.uniform(0.5, 1), asked_s)
        else:
            if told:
                log.log(level, "the wait is over after %.0f s", time.monotonic() - began)
            return answer
        time.sleep(min(wait_s, timeout_s - waited_s))
        pause_s = min(2 * pause_s, longest_s)
