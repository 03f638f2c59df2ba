"""Gauges that last. Ray drops a gauge that was not set for two report intervals, even if its process is alive."""

import logging
import sys
import threading
from collections.abc import Callable, Iterable

from ray.util.metrics import Gauge

log = logging.getLogger(__name__)

REFRESH_S = 1.0
"""Less than two of Ray's shortest report intervals, which are 1 s each."""

CLOSE_TIMEOUT_S = 10

Reading = tuple[Gauge, float, dict[str, str]]
"""A gauge, its value and its tags."""


class LastingGauges:
    """Sets gauges repeatedly in a thread until it is closed.

    Args:
        read: returns the current values. A gauge that it leaves out disappears after two report intervals.
    """

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self.read = read
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="gauges", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Set the gauges a last time and stop."""
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
        except Exception:  # one reading may fail; the next may succeed
            log.exception("gauges could not be read")


def gpu_memory(role: str, run: str = "") -> Callable[[], list[Reading]]:
    """Return a function that reads the GPU memory reserved by PyTorch in this process.

    It reads nothing if there is no CUDA, or if the process has not imported PyTorch.

    Args:
        run: the run that the process belongs to; empty for a reward replica, which serves several runs.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return list
    gauge = Gauge("tempflow_gpu_memory_bytes", "GPU memory that PyTorch has reserved.", ("role", "run"))

    def read() -> list[Reading]:
        return [(gauge, torch.cuda.memory_reserved(), {"role": role, "run": run})]

    return read
