"""The optimizers: AdamW with its moments on its parameters' device, or in the memory of the CPU."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from actors.learner.settings import LearnerSettings
from actors.policy.sharding import local

STEP, MOMENTS = "step", ("exp_avg", "exp_avg_sq")
"""Names in the state of a parameter: its number of optimizer steps, always on the CPU, and tensors of its shape."""


def make_optimizer(settings: LearnerSettings, parameters: Iterable[Tensor]) -> torch.optim.AdamW:
    """The optimizer that `learner.optimizer` names, over the fp32 parameters."""
    kind = OffloadedAdamW if settings.optimizer == "adamw_offload" else torch.optim.AdamW
    return kind(parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, eps=settings.eps)


class OffloadedAdamW(torch.optim.AdamW):
    """AdamW whose moments lie on the CPU, in pinned memory where the parameters are on a GPU.

    Parameters are updated one after another. For the update, the moments of a parameter are copied to its device, where
    AdamW computes as usual. So the bits are the same.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        every = group["params"]
        try:
            for parameter in every:
                group["params"] = [parameter]
                self._step_alone(parameter)
        finally:
            group["params"] = every

    def _step_alone(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        kept = {name: state[name] for name in MOMENTS if name in state}
        state.update({name: moment.to(parameter.device) for name, moment in kept.items()})
        super().step()
        state.update({name: on_cpu(state[name], kept.get(name)) for name in MOMENTS if name in state})


def on_cpu(moment: Tensor, into: Tensor | None = None) -> Tensor:
    """A moment on the CPU: its values are copied into `into`, or into new memory if that is not given."""
    if into is None:
        into = torch.empty_like(moment, device="cpu", pin_memory=moment.is_cuda)
    local(into).copy_(local(moment))
    return into
