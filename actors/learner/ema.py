"""An exponential moving average of the trained parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from actors.learner.settings import EmaSettings


class Ema:
    """EMA with warm-up, as in Flow-GRPO: decay min((1 + n) / (10 + n), decay), every few optimizer steps."""

    def __init__(self, settings: EmaSettings, parameters: Mapping[str, Tensor]) -> None:
        self.settings = settings
        self.parameters = parameters
        self.shadow = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Call once after each optimizer step."""
        self.steps += 1
        if self.steps % self.settings.every:
            return
        decay = min((1 + self.steps) / (10 + self.steps), self.settings.decay)
        for name, shadow in self.shadow.items():
            shadow.lerp_(self.parameters[name], 1 - decay)

    def state(self) -> dict[str, Tensor]:
        return {
            **{name: shadow.contiguous() for name, shadow in self.shadow.items()},
            "steps": torch.tensor(self.steps),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        for name, shadow in self.shadow.items():
            shadow.copy_(state[name])
