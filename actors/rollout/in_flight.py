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
        self._lock = threading.Lock()

    def reserve(self, count: int) -> bool:
        """Take `count` bytes if they fit; False if not."""
        with self._lock:
            if self.bytes and self.bytes + count > self.bound:
                return False
            self.bytes += count
            self.peak = max(self.peak, self.bytes)
            return True

    def release(self, count: int) -> None:
        with self._lock:
            self.bytes -= count

    def take_peak(self) -> int:
        """The most bytes at once since this was last asked."""
        with self._lock:
            peak, self.peak = self.peak, self.bytes
            return peak
