"""What one update did, as the driver sees it: no Torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateStats:
    """What one update did. Lists are by sampling step (T), NaN where a step had no decision."""

    loss: float
    kl: float
    grad_norm: float
    """Mean over the optimizer steps, before clipping."""
    grad_rms: float
    """Root mean square of the gradient's elements after clipping, as Adam gets it; mean over the optimizer steps."""
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
