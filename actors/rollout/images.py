"""Images on their way from generation to scoring, and the bound on the bytes that they take together."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np


class ByteBudget:
    """Bytes that are reserved before images are generated and released once they are scored. Thread-safe.

    Args:
        bound: the most bytes at once. A single job may exceed it when nothing else is reserved.
        on_release: called after each release, by the thread that released.
    """

    def __init__(self, bound: int, on_release: Callable[[], None] = lambda: None) -> None:
        self.bound = bound
        self.reserved = 0
        self._peak = 0
        self._on_release = on_release
        self._lock = threading.Lock()

    def reserve(self, count: int) -> bool:
        """Take `count` bytes if they fit; return whether they did."""
        with self._lock:
            if self.reserved and self.reserved + count > self.bound:
                return False
            self.reserved += count
            self._peak = max(self._peak, self.reserved)
            return True

    def release(self, count: int) -> None:
        with self._lock:
            self.reserved -= count
        self._on_release()

    def take_peak(self) -> int:
        """The most bytes that were reserved at once since the last call."""
        with self._lock:
            peak, self._peak = self._peak, self.reserved
            return peak


class Images:
    """The images of one job. They hold their bytes of the budget until whoever got them releases them.

    Args:
        reference: what the reward pool takes: an array (N, H, W, 3) uint8, or a reference to one in the object store.
        num_bytes: their share of the budget, which is reserved already.
        fetch: gives the array behind the reference.
    """

    def __init__(self, reference: Any, num_bytes: int, budget: ByteBudget, fetch: Callable[[Any], np.ndarray]) -> None:
        self._reference, self._fetch = reference, fetch
        self._num_bytes, self._budget = num_bytes, budget
        self.released = False

    @property
    def reference(self) -> Any:
        """Raises RuntimeError once the images are released."""
        if self.released:
            raise RuntimeError("the images are released")
        return self._reference

    def pixels(self) -> np.ndarray:
        """A copy of the images for the driver, (N, H, W, 3) uint8."""
        return self._fetch(self.reference)

    def release(self) -> None:
        """Drop the images and give their bytes back. Only the first call counts."""
        if not self.released:
            self.released = True
            self._reference = None
            self._budget.release(self._num_bytes)
