"""Models that are kept on the CPU and copied to the GPU while they work."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Offloaded:
    """Models without a gradient, kept on the CPU. If the device is a GPU, they are in pinned memory for faster copies.

    Args:
        models: their parameters and buffers are on the CPU from now on.
        device: the device on which they work.
    """

    def __init__(self, models: Iterable[nn.Module], device: torch.device) -> None:
        self.device = device
        self._tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
        self._on_cpu = [self._kept(tensor) for tensor in self._tensors]
        self._leave()

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """Within this context, the models are on the device. They are not copied back, as nothing has changed."""
        try:
            for tensor, kept in zip(self._tensors, self._on_cpu, strict=True):
                tensor.data = kept.to(self.device, non_blocking=True, copy=True)
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        for tensor, kept in zip(self._tensors, self._on_cpu, strict=True):
            tensor.data = kept

    def _kept(self, tensor: Tensor) -> Tensor:
        on_cpu = tensor.detach().to("cpu")
        return on_cpu.pin_memory() if self.device.type == "cuda" else on_cpu
