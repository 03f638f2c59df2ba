"""The images between generation and scoring, and the limit on the bytes of all of them together."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np


class ByteBudget:
    """Counts bytes that are reserved before images are generated and released after they are scored. Thread-safe.

    Args:
        bound: the most bytes at once. A single job may exceed it if nothing else is reserved.
        on_release: called after each release, in the thread that released.
    """

    def __init__(self, bound: int, on_release: Callable[[], None] = lambda: None) -> None:
        self.bound = bound
        self.reserved = 0
        self._peak = 0
        self._on_release = on_release
        self._lock = threading.Lock()

    def reserve(self, count: int) -> bool:
        """Reserve `count` bytes if they fit. Returns whether they did."""
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
    """The images of one job. Their bytes count in the budget until `release` is called.

    Args:
        reference: the reward pool's input: an array (N, H, W, 3) uint8, or a reference to one in the object store.
        num_bytes: the bytes of the images, already reserved in the budget.
        fetch: returns the array for a reference.
    """

    def __init__(self, reference: Any, num_bytes: int, budget: ByteBudget, fetch: Callable[[Any], np.ndarray]) -> None:
        self._reference, self._fetch = reference, fetch
        self._num_bytes, self._budget = num_bytes, budget
        self.released = False

    @property
    def reference(self) -> Any:
        """The reference to the images.

        Raises:
            RuntimeError: the images are released.
        """
        if self.released:
            raise RuntimeError("the images are released")
        return self._reference

    def pixels(self) -> np.ndarray:
        """A copy of the images for the driver, (N, H, W, 3) uint8."""
        return self._fetch(self.reference)

    def release(self) -> None:
        """Drop the images and release their bytes. Further calls have no effect."""
        if not self.released:
            self.released = True
            self._reference = None
            self._budget.release(self._num_bytes)
