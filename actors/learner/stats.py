"""What an update did: sums kept on the device, read once at its end.

Shape legend: N decisions, K actions, T sampling steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class UpdateStats:
    """What one update did. Lists are by sampling step (T), NaN where a step had no decision."""

    loss: float
    kl: float
    grad_norm: float
    """Mean over the optimizer steps, before clipping."""
    ratio_mean: float
    ratio_max_deviation: float
    """max |ρ − 1| over the update; exactly 0 where the update is one optimizer step."""
    first_ratio_deviation: float
    """max |ρ − 1| before the first optimizer step: 0, or the learner is wrong."""
    clip_fraction: float
    drift_mean: list[float]
    """Mean |log p(rollout) − log p(learner)| before the update."""
    drift_max: list[float]
    nfe: int
    """Forwards and backwards (a backward counts 2), reference and old passes included."""
    seconds: float


class Monitor:
    """Collects an update's statistics without a host-device sync in the loop."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        import torch

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

    def drift_mean_T(self) -> Tensor:
        """NaN where a step had no decision."""
        return self.drift_sum_T / self.drift_count_T

    def check_drift(self, bound: float) -> None:
        """Refuse to train on what another arithmetic sampled.

        Raises:
            UserError: the mean |Δ log p| of a step exceeds `bound`.
        """
        worst = float(self.drift_mean_T().nan_to_num().max())
        if worst > bound:
            raise UserError(
                f"rollout and learner disagree: mean |Δ log p| is {worst:.2g}, above learner.max_drift = {bound:g}; "
                "use the same dtype and device for both, or raise the bound"
            )

    def stats(self, optimizer_steps: int, first_deviation: float, grad_norm: float, seconds: float) -> UpdateStats:
        drawn_T = self.drift_count_T > 0
        return UpdateStats(
            loss=float(self.loss) / optimizer_steps,
            kl=float(self.kl) / optimizer_steps,
            grad_norm=grad_norm,
            ratio_mean=float(self.ratio) / self.count if self.count else float("nan"),
            ratio_max_deviation=float(self.max_deviation),
            first_ratio_deviation=first_deviation,
            clip_fraction=float(self.clipped) / self.count if self.count else float("nan"),
            drift_mean=self.drift_mean_T().tolist(),
            drift_max=self.drift_max_T.where(drawn_T, float("nan")).tolist(),
            nfe=self.nfe,
            seconds=seconds,
        )
