"""An update's statistics: sums kept on the device, read once at its end.

Shape legend: N decisions, K actions, T sampling steps.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from actors.learner.ranks import Ranks
from actors.learner.stats import UpdateStats
from services.base.errors import UserError


class Monitor:
    """Collects an update's statistics without a host-device sync in the loop."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=device)

        self.loss, self.kl, self.ratio, self.clipped, self.max_deviation = (zeros() for _ in range(5))
        self.drift_sum_T, self.drift_count_T = zeros(num_steps), zeros(num_steps)
        self.drift_max_T = zeros(num_steps)
        self.count = self.nfe = 0

    def add_loss(self, loss: Tensor, kl: Tensor) -> None:
        self.loss += loss
        self.kl += kl

    def add_ratio(self, ratio_NK: Tensor, clipped_NK: Tensor) -> None:
        self.ratio += ratio_NK.sum()
        self.clipped += clipped_NK.sum()
        self.max_deviation = self.max_deviation.maximum((ratio_NK - 1).abs().max())
        self.count += ratio_NK.numel()

    def add_drift(self, step_N: Tensor, delta_NK: Tensor) -> None:
        step_A, delta_A = step_N.repeat_interleave(delta_NK.shape[1]), delta_NK.abs().flatten().float()
        self.drift_sum_T.index_add_(0, step_A, delta_A)
        self.drift_count_T += step_A.bincount(minlength=len(self.drift_count_T))
        self.drift_max_T.scatter_reduce_(0, step_A, delta_A, "amax")

    def shared(self, ranks: Ranks) -> Monitor:
        """What all ranks have collected."""
        whole = copy(self)
        for name, value in vars(self).items():
            total = value.clone() if isinstance(value, Tensor) else torch.tensor(value, device=self.loss.device)
            (ranks.max if "max" in name else ranks.sum)(total)
            setattr(whole, name, total)
        return whole

    def drift_mean_T(self) -> Tensor:
        """NaN where a step had no decision."""
        return self.drift_sum_T / self.drift_count_T

    def check_drift(self, bound: float) -> None:
        """Refuse to train on what another arithmetic sampled.

        Raises:
            UserError: the mean |Δ log p| of a step exceeds `bound`, or is not a number.
        """
        drawn_T = self.drift_count_T > 0
        worst = float(torch.where(drawn_T, self.drift_mean_T(), 0.0).max())
        if not worst <= bound:
            raise UserError(
                f"rollout and learner disagree: mean |Δ log p| is {worst:.2g}, above learner.max_drift = {bound:g}; "
                "use the same dtype and device for both, or raise the bound"
            )

    def stats(self, optimizer_steps: int, first_deviation: float, grad_norm: float, seconds: float) -> UpdateStats:
        drawn_T, count = self.drift_count_T > 0, int(self.count)
        return UpdateStats(
            loss=float(self.loss) / optimizer_steps,
            kl=float(self.kl) / optimizer_steps,
            grad_norm=grad_norm,
            ratio_mean=float(self.ratio) / count if count else float("nan"),
            ratio_max_deviation=float(self.max_deviation),
            first_ratio_deviation=first_deviation,
            clip_fraction=float(self.clipped) / count if count else float("nan"),
            drift_mean=self.drift_mean_T().tolist(),
            drift_max=self.drift_max_T.where(drawn_T, float("nan")).tolist(),
            nfe=int(self.nfe),
            seconds=seconds,
        )
