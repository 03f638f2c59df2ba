"""The interface of objectives: how tasks become micro-batches, and the loss of a micro-batch.

Shape legend: N rows of a micro-batch, K actions of a row, Z latent dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from actors.learner.averages import Average
from actors.learner.settings import ObjectiveSettings
from actors.policy.arrays import to_tensor
from actors.policy.families.family import of_prompts
from actors.policy.kernels import Kernel
from actors.policy.policy import Policy
from actors.trajectory import Decisions, Leaves

Item = TypeVar("Item", Decisions, Leaves)
Micro = TypeVar("Micro")


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch: sums over its actions, without padding."""

    total: Tensor
    """The sum of both parts, which is differentiated."""
    policy: Tensor
    """The part with the advantages, detached."""
    kl: Tensor
    """The KL term without its factor β, detached; 0 if β is 0."""
    ratio_NK: Tensor
    clipped_NK: Tensor
    """Whether the clip cuts the gradient."""
    old: Tensor | None = None
    """The values of the old policy that this micro-batch was compared with, detached; None if it needs none."""
    drift: tuple[Tensor, Tensor] | None = None
    """The sampling step (N,) of each decision, and log p(old policy) − log p(rollout) of its actions (N, K)."""


class Objective(ABC, Generic[Item, Micro]):
    """The loss of one kind of experience.

    The old policy is the one before the update's first optimizer step. Its values on a micro-batch are called `old`.

    Args:
        averages: the weight sets that `settings` declares, as tensors.
        micro_batch: rows of one forward and backward.
        trainable: the sampling steps that the plan may train.
    """

    def __init__(
        self,
        settings: ObjectiveSettings,
        policy: Policy,
        averages: Sequence[Average],
        kernel: Kernel,
        micro_batch: int,
        trainable: list[int],
    ) -> None:
        self.settings, self.policy, self.averages = settings, policy, averages
        self.family = policy.family if settings.trains_guided else policy.family.unguided()
        self.kernel, self.micro_batch, self.trainable = kernel, micro_batch, trainable
        self._reference: dict[str, Tensor] = {}
        """The trained weights of the reference; empty if it is the base."""
        if settings.reference:
            self._reference = policy.adapter_of(Path(settings.reference), "objective.reference")

    @cached_property
    def weight_T(self) -> Tensor | None:
        """The weight w_i of each sampling step; None if the objective has no such weights."""
        return None

    @abstractmethod
    def planned(self, item: Item) -> float:
        """The number of actions that a task adds to the denominator of the loss, holes and flat groups included."""

    @abstractmethod
    def micro_batches(self, item: Item, advantage_NK: np.ndarray) -> Iterator[Micro]:
        """A task as padded micro-batches of one shape, made one at a time. Every call gives the same ones."""

    @abstractmethod
    def idle(self, item: Item) -> Micro:
        """A micro-batch that consists of padding. Its loss is 0."""

    def old(self, micro: Micro) -> Tensor | None:
        """The values of the old policy that the loss needs; None if it needs none. The weights are still the old
        ones."""
        return None

    @abstractmethod
    def loss(self, micro: Micro, old: Tensor | None) -> Loss:
        """The loss of one micro-batch.

        Args:
            old: the result of `old`; None if the weights still are those of the old policy.
        """

    def velocity(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        return self.family.velocity(x_NZ, sigma_N, conditioning)

    @contextmanager
    def compared(self) -> Iterator[None]:
        """Within this context, the policy has the weight set that the loss compares with, and computes no gradient."""
        shadow = next(average.shadow for average in self.averages if "loss" in average.weight_set.uses)
        live = self.policy.parameters
        with torch.no_grad(), self.policy.holding({key: value.to(live[key].dtype) for key, value in shadow.items()}):
            yield

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context, the policy is the reference, and computes no gradient."""
        holding = self.policy.holding(self._reference) if self._reference else self.policy.base()
        with torch.no_grad(), holding:
            yield

    def rows_of(self, conditioning: Mapping[str, np.ndarray], count: int) -> dict[str, Tensor]:
        """A task's conditioning for `count` rows, on the device in the compute dtype."""
        return {
            name: to_tensor(rows)
            .to(self.policy.device, self.family.dtype, non_blocking=True)
            .expand(count, *rows.shape[1:])
            for name, rows in (conditioning if self.family.guided else of_prompts(conditioning)).items()
        }

    def on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.policy.device, non_blocking=True)


def padded_rows(rows: np.ndarray, size: int, together: int = 1) -> Iterator[tuple[np.ndarray, int]]:
    """Split rows into batches of `size`, each filled with its last row where there are too few. Also gives how many
    rows are real. Each run of `together` rows stays in one batch."""
    most = size - size % together
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        yield np.pad(part, (0, size - len(part)), mode="edge"), len(part)


def clipped_surrogate(ratio_NK: Tensor, advantage_NK: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """max(−A·ρ, −A·clip(ρ, 1 ± c)), the surrogate of PPO, and whether the clip cuts its gradient; (N, K) each."""
    plain_NK = -advantage_NK * ratio_NK
    clipped_NK = -advantage_NK * ratio_NK.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(plain_NK, clipped_NK), (clipped_NK > plain_NK).detach()
