"""An adapter that is added into the weights of its base while the model samples, and taken out bit for bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


class MergingAdapter:
    """Merges the adapter of a transformer into its layers, and restores them.

    A merged layer computes (W + s·B·A)·x in one matrix product, where W·x + s·B·(A·x) takes three and two additions.
    The sum is made in fp32 and rounded once to the compute dtype.

    W is kept on the CPU, in pinned memory where the model is on a GPU: subtracting s·B·A would not give it back, since
    the sum was rounded. Each time that the adapter is taken out, these weights are copied from the CPU.

    Args:
        transformer: a diffusers model with PEFT's adapter `default`.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
        self._pristine = [_on_cpu(layer.get_base_layer().weight) for layer in self._layers]

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within this context, the adapter is added into the base's weights. They have no gradient."""
        try:
            self._merge()
            yield
        finally:
            self._restore()

    @torch.no_grad()
    def _merge(self) -> None:
        for layer in self._layers:
            weight = layer.get_base_layer().weight
            left, right = layer.lora_B["default"].weight.float(), layer.lora_A["default"].weight.float()
            weight.copy_(weight.float() + layer.scaling["default"] * (left @ right))
            layer.merged_adapters = ["default"]

    @torch.no_grad()
    def _restore(self) -> None:
        for layer, pristine in zip(self._layers, self._pristine, strict=True):
            layer.get_base_layer().weight.copy_(pristine, non_blocking=True)
            layer.merged_adapters = []


def _on_cpu(weight: Tensor) -> Tensor:
    copied = weight.detach().to("cpu", copy=True)
    return copied.pin_memory() if weight.is_cuda else copied
