"""Gauges that last: Ray drops one that has not been set for two of its report intervals, though its process lives."""

import logging
import threading
from collections.abc import Callable, Iterable

from ray.util.metrics import Gauge

log = logging.getLogger(__name__)

REFRESH_S = 1.0
"""Less than two of Ray's shortest report intervals, a second each."""

CLOSE_TIMEOUT_S = 10

Reading = tuple[Gauge, float, dict[str, str]]
"""A gauge, its value and its tags."""


class LastingGauges:
    """Sets gauges again and again, in a thread, until closed.

    Args:
        read: what they say now; one that it leaves out is gone two report intervals later.
    """

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self.read = read
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="gauges", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Set them once more, and let them go."""
        self._closed.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_S):
            self._set()
        self._set()

    def _set(self) -> None:
        try:
            for gauge, value, tags in self.read():
                gauge.set(value, tags)
        except Exception:  # whatever a reading runs into, the next one may not
            log.exception("gauges could not be read")


def gpu_memory(role: str, run: str = "") -> Callable[[], list[Reading]]:
    """Reads the GPU memory that this process's Torch has reserved; nothing where there is no CUDA.

    Args:
        run: whose process it is; none for a reward replica, which serves several.
    """
    import torch

    there = torch.cuda.is_available()
    gauge = Gauge("tempflow_gpu_memory_bytes", "GPU memory that PyTorch has reserved.", ("role", "run"))

    def read() -> list[Reading]:
        return [(gauge, torch.cuda.memory_reserved(), {"role": role, "run": run})] if there else []

    return read
