"""The weight sets as tensors: moving averages of the trained parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from actors.learner.weight_sets import WeightSet

COUNT = "steps"
"""The key of the number of steps in an average's state, beside its tensors."""


class Average:
    """One moving average: shadow ← d·shadow + (1 − d)·parameters, with the decay d of its weight set.

    Args:
        parameters: the tensors that are averaged, by name.
    """

    def __init__(self, weight_set: WeightSet, parameters: Mapping[str, Tensor]) -> None:
        self.weight_set, self.parameters = weight_set, parameters
        self.shadow = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def follow(self) -> None:
        """Count a step, and change the average if it is due."""
        self.steps += 1
        if self.steps % self.weight_set.every:
            return
        rate = 1 - self.weight_set.decay(self.steps)
        for name, shadow in self.shadow.items():
            shadow.lerp_(self.parameters[name], rate)

    def state(self) -> dict[str, Tensor]:
        return {
            **{name: shadow.contiguous() for name, shadow in self.shadow.items()},
            COUNT: torch.tensor(self.steps),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state[COUNT])
        for name, shadow in self.shadow.items():
            shadow.copy_(state[name])
