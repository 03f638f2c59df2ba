"""The statistics of an update. They stay on the device and are read once, at the end of the update.

Shape legend: N decisions, K actions, T sampling steps.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from actors.learner.ranks import Ranks
from actors.learner.stats import UpdateStats
from services.base.errors import UserError


@dataclass
class Sums:
    """Statistics that add up over micro-batches and ranks."""

    loss: Tensor
    kl: Tensor
    ratio: Tensor
    clipped: Tensor
    count: Tensor
    """The number of actions in the sums `ratio` and `clipped`."""
    nfe: Tensor
    drift_T: Tensor
    """The sum of |Δ log p|, by sampling step."""
    drift_count_T: Tensor
    """The number of actions in the sums of `drift_T`."""


@dataclass
class Maxima:
    """Statistics of which the largest value is kept, over micro-batches and ranks."""

    deviation: Tensor
    """|ρ − 1|."""
    drift_T: Tensor
    """|Δ log p|."""


Statistics = TypeVar("Statistics", Sums, Maxima)


class Monitor:
    """Collects the statistics of an update. Nothing in the loop waits for the device."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        def zero(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros((), dtype=dtype, device=device)

        def zeros_T() -> Tensor:
            return torch.zeros(num_steps, device=device)

        self.sums = Sums(
            loss=zero(),
            kl=zero(),
            ratio=zero(),
            clipped=zero(),
            count=zero(torch.int64),
            nfe=zero(torch.int64),
            drift_T=zeros_T(),
            drift_count_T=zeros_T(),
        )
        self.maxima = Maxima(deviation=zero(), drift_T=zeros_T())

    def add_nfe(self, nfe: int) -> None:
        self.sums.nfe += nfe

    def add_loss(self, loss: Tensor, kl: Tensor) -> None:
        self.sums.loss += loss
        self.sums.kl += kl

    def add_ratio(self, ratio_NK: Tensor, clipped_NK: Tensor) -> None:
        self.sums.ratio += ratio_NK.sum()
        self.sums.clipped += clipped_NK.sum()
        self.sums.count += ratio_NK.numel()
        self.maxima.deviation = self.maxima.deviation.maximum((ratio_NK - 1).abs().max())

    def add_drift(self, step_N: Tensor, delta_NK: Tensor) -> None:
        step_A, delta_A = step_N.repeat_interleave(delta_NK.shape[1]), delta_NK.abs().flatten().float()
        self.sums.drift_T.index_add_(0, step_A, delta_A)
        self.sums.drift_count_T.index_add_(0, step_A, torch.ones_like(delta_A))
        self.maxima.drift_T.scatter_reduce_(0, step_A, delta_A, "amax")

    def shared(self, ranks: Ranks) -> Monitor:
        """The statistics of all ranks, by one collective for the sums and one for the maxima."""
        whole = copy(self)
        whole.sums, whole.maxima = _reduced(self.sums, ranks.sum), _reduced(self.maxima, ranks.max)
        return whole

    def drift_mean_T(self) -> Tensor:
        """The mean |Δ log p| of each sampling step; NaN for a step without decisions."""
        return self.sums.drift_T / self.sums.drift_count_T

    def check_drift(self, bound: float) -> None:
        """Refuse to train if the learner's log-probabilities differ too much from the rollout's.

        Raises:
            UserError: the mean |Δ log p| of a step exceeds `bound`, or is not a number.
        """
        drawn_T = self.sums.drift_count_T > 0
        worst = float(torch.where(drawn_T, self.drift_mean_T(), 0.0).max())
        if not worst <= bound:
            raise UserError(
                f"rollout and learner disagree: mean |Δ log p| is {worst:.2g}, above learner.max_drift = {bound:g}; "
                "use the same dtype and device for both, or raise the bound"
            )

    def stats(self, optimizer_steps: int, first_deviation: float, grad_norm: float, seconds: float) -> UpdateStats:
        sums, maxima = self.sums, self.maxima
        drawn_T, count = sums.drift_count_T > 0, int(sums.count)
        return UpdateStats(
            loss=float(sums.loss) / optimizer_steps,
            kl=float(sums.kl) / optimizer_steps,
            grad_norm=grad_norm,
            ratio_mean=float(sums.ratio) / count if count else float("nan"),
            ratio_max_deviation=float(maxima.deviation),
            first_ratio_deviation=first_deviation,
            clip_fraction=float(sums.clipped) / count if count else float("nan"),
            drift_mean=self.drift_mean_T().tolist(),
            drift_max=maxima.drift_T.where(drawn_T, float("nan")).tolist(),
            nfe=int(sums.nfe),
            seconds=seconds,
        )


def _reduced(statistics: Statistics, reduce: Callable[[Tensor], None]) -> Statistics:
    """A copy whose values are reduced over the ranks together, in float64, which holds counts exactly."""
    values: list[Tensor] = [getattr(statistics, field.name) for field in fields(statistics)]
    flat = torch.cat([value.flatten().double() for value in values])
    reduce(flat)
    parts = flat.split([value.numel() for value in values])
    return type(statistics)(*(part.view_as(value).to(value.dtype) for part, value in zip(parts, values, strict=True)))
