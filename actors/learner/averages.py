"""Moving averages of the trained parameters."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from actors.learner.settings import EmaSettings


class Average:
    """shadow ← d·shadow + (1 − d)·parameters at every `every`-th update.

    Args:
        parameters: what is averaged, by name.
        decay: d of update n, counted from 1.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: Callable[[int], float], every: int = 1) -> None:
        self.parameters, self.decay, self.every = parameters, decay, every
        self.shadow = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        if self.steps % self.every:
            return
        rate = 1 - self.decay(self.steps)
        for name, shadow in self.shadow.items():
            shadow.lerp_(self.parameters[name], rate)

    def state(self) -> dict[str, Tensor]:
        return {
            **{name: shadow.contiguous() for name, shadow in self.shadow.items()},
            "steps": torch.tensor(self.steps),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        for name, shadow in self.shadow.items():
            shadow.copy_(state[name])


def ema(settings: EmaSettings, parameters: Mapping[str, Tensor]) -> Average:
    """EMA with warm-up, as in Flow-GRPO: decay min((1 + n) / (10 + n), decay). Update it at each optimizer step."""
    return Average(parameters, lambda n: min((1 + n) / (10 + n), settings.decay), settings.every)
