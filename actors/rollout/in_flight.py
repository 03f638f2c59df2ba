"""A bound on the bytes that wait between generation and scoring."""

import threading


class InFlight:
    """Bytes reserved before a task starts and released once its images are scored. Thread-safe.

    Args:
        bound: bytes in flight at most; a single task may exceed it when nothing else is in flight.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.bytes = 0
        self.peak = 0
        self._changed = threading.Condition()

    def reserve(self, count: int, wait_s: float = 0.0) -> bool:
        """Take `count` bytes if they fit within `wait_s` seconds; False if not."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self.bytes or self.bytes + count <= self.bound, wait_s):
                return False
            self.bytes += count
            self.peak = max(self.peak, self.bytes)
            return True

    def release(self, count: int) -> None:
        with self._changed:
            self.bytes -= count
            self._changed.notify_all()
