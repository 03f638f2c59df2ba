"""fp32 copies of the trained parameters. The optimizer changes these, whatever the compute dtype is."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Masters:
    """An fp32 tensor for each trained parameter, which sums its gradients and takes the optimizer's steps.

    A parameter that is fp32 already is its own master. Steps of 1e-5 would be lost in bf16, whose values
    lie 2⁻⁸ apart in relative size.

    Attributes:
        tensors: by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        for name, parameter in parameters.items():
            if parameter.dtype == torch.float32:
                self.tensors[name] = parameter
                continue
            master = parameter.detach().float().requires_grad_()
            self.tensors[name] = master
            self._copies.append((parameter, master))
            parameter.register_post_accumulate_grad_hook(_gather_into(master))

    @property
    def count(self) -> int:
        """The number of elements of all trained parameters, those of other shards included."""
        return sum(master.numel() for master in self.tensors.values())

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters, rounded, into the live parameters. Call this after each optimizer step."""
        for parameter, master in self._copies:
            parameter.copy_(master)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the masters by saved ones."""
        for name, master in self.tensors.items():
            master.copy_(tensors[name])
        self.publish()


def _gather_into(master: Tensor):  # type: ignore[no-untyped-def]
    """A hook that moves a parameter's gradient of one micro-batch into its master's, summed in fp32."""

    def move(parameter: Tensor) -> None:
        assert parameter.grad is not None
        master.grad = parameter.grad.float() if master.grad is None else master.grad + parameter.grad
        parameter.grad = None

    return move
