"""The statistics of one update, as the driver gets them. Without Torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateStats:
    """The statistics of one update. Lists are by sampling step (T), with NaN for steps without decisions."""

    loss: float
    kl: float
    grad_norm: float
    """Mean over the optimizer steps, before clipping."""
    grad_rms: float
    """Root mean square of the gradient's elements after clipping, as Adam gets it; mean over the optimizer steps."""
    ratio_mean: float
    ratio_max_deviation: float
    """max |ρ − 1| over the update; exactly 0 if the update is one optimizer step."""
    first_ratio_deviation: float
    """max |ρ − 1| before the first optimizer step. If it is not 0, the learner is wrong."""
    clip_fraction: float
    drift_mean: list[float]
    """Mean |log p(rollout) − log p(learner)| before the update."""
    drift_max: list[float]
    nfe: int
    """Forwards and backwards (a backward counts 2), reference and old passes included."""
    seconds: float
