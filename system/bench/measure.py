"""Clocks and counters of the benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PEAK_SIDE = {"cpu": 2048, "cuda": 8192}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, its work on the device included."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def turns(calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Wall times of each call in seconds, by round; the calls take turns, after one round that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            taken_s = seconds(call, device)
            if turn:
                taken[name].append(taken_s)
    return taken


def alternate(calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Best wall time of each call in seconds; the calls take turns, after one round that is not counted."""
    return {name: min(taken) for name, taken in turns(calls, rounds, device).items()}


class Inside:
    """Counts calls of a module and, on request, the time inside them. A context manager."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = module, device
        self.calls, self.rows = 0, 0
        self._spans: list[tuple[Any, Any]] = []

    def __enter__(self) -> Inside:
        self._hooks = [
            self.module.register_forward_pre_hook(self._before, with_kwargs=True),
            self.module.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, _: nn.Module, __: tuple, given: dict[str, Any]) -> None:
        self.calls += 1
        self.rows += len(given["hidden_states"])
        self._started = self._mark()

    def _after(self, *_: object) -> None:
        self._spans.append((self._started, self._mark()))

    def _mark(self) -> Any:
        """A point in the device's own time, so that measuring does not make it wait."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def seconds(self) -> float:
        """Time inside the module."""
        synchronise(self.device)
        if self.device.type != "cuda":
            return sum(end - start for start, end in self._spans)
        return sum(start.elapsed_time(end) for start, end in self._spans) / 1000


def flops_of(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and attention in one call (a multiplication and an addition: 2)."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matmul_peak(device: torch.device, dtype: torch.dtype, rounds: int = 5, side: int | None = None) -> float:
    """FLOP/s of one large matrix product: what the device gives at best, in practice."""
    side = side or PEAK_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = alternate({"product": lambda: left @ right}, rounds, device)["product"]
    return 2 * side**3 / best


def name_of(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
