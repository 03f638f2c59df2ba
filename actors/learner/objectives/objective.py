"""What an objective is: how tasks become micro-batches, and the loss of one.

Shape legend: N rows of a micro-batch, K actions of a row, Z latent dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from actors.learner.averages import Average
from actors.policy.policy import Policy
from actors.trajectory import Decisions, Samples

Item = TypeVar("Item", Decisions, Samples)
Micro = TypeVar("Micro")


@dataclass(frozen=True)
class Loss:
    """Of one micro-batch: sums over its actions, padding left out."""

    total: Tensor
    """What is differentiated."""
    policy: Tensor
    """The part of it that carries the reward, detached."""
    kl: Tensor
    """The distance to the reference before its factor β, detached; 0 where β is 0."""
    ratio_NK: Tensor
    clipped_NK: Tensor
    """Whether the clip cuts the gradient."""
    drift: tuple[Tensor, Tensor] | None = None
    """Sampling step (N,) and log p(learner before the update) − log p(rollout) (N, K)."""


class Objective(ABC, Generic[Item, Micro]):
    """The loss of one kind of experience.

    Args:
        settings: whose `passes` say what a row of it costs.
        averages: moving averages of the trained parameters: `ema` where the recipe has one, and `old`, which is sampled
            from, where the objective is DiffusionNFT's.
    """

    weight_T: Tensor | None = None
    """The weight w_i of each sampling step, where the objective has such."""

    def __init__(self, settings: Any, policy: Policy, averages: Mapping[str, Average], micro_batch: int) -> None:
        self.settings, self.policy, self.averages, self.micro_batch = settings, policy, averages, micro_batch

    @abstractmethod
    def planned(self, item: Item) -> float:
        """How many actions a task counts for in the loss's denominator, holes and flat groups included."""

    @abstractmethod
    def micro_batches(self, item: Item, advantage_NK: np.ndarray) -> Iterator[Micro]:
        """A task in padded batches of one shape, made one at a time; the same whenever they are asked for."""

    @abstractmethod
    def idle(self, item: Item) -> Micro:
        """A micro-batch of padding alone: its loss is 0."""

    def before(self, micro: Micro) -> Tensor | None:
        """What the loss needs to know of the policy as it was before the update's first optimizer step, if anything."""
        return None

    @abstractmethod
    def loss(self, micro: Micro, before: Tensor | None) -> Loss:
        """The loss of one micro-batch; `before` is not given in the first minibatch, whose policy that still is."""

    def velocity(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        return self.policy.family.velocity(x_NZ, sigma_N, conditioning)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """The policy holds the average `name`, without gradient."""
        shadow = self.averages[name].shadow
        live = self.policy.parameters
        with torch.no_grad(), self.policy.holding({key: value.to(live[key].dtype) for key, value in shadow.items()}):
            yield

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The policy is the base, without gradient."""
        with torch.no_grad(), self.policy.reference():
            yield

    def rows_of(self, conditioning: Mapping[str, np.ndarray], count: int) -> dict[str, Tensor]:
        """A task's conditioning for `count` rows, on the device in the compute dtype."""
        return {
            name: torch.from_numpy(np.array(rows))
            .to(self.policy.device, self.policy.family.dtype)
            .expand(count, *rows.shape[1:])
            for name, rows in conditioning.items()
        }

    def on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.policy.device)


def padded_rows(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """`rows` in batches of `size`, the last one filled with its last row; and how many of a batch are real."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield np.pad(part, (0, size - len(part)), mode="edge"), len(part)


def clipped_surrogate(ratio_NK: Tensor, advantage_NK: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """max(−A·ρ, −A·clip(ρ, 1 ± c)), PPO's, and whether the clip cuts the gradient; (N, K) each."""
    plain_NK = -advantage_NK * ratio_NK
    clipped_NK = -advantage_NK * ratio_NK.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(plain_NK, clipped_NK), (clipped_NK > plain_NK).detach()
