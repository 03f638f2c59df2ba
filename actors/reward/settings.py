"""Settings of the reward pool as the training loop uses it."""

from pydantic import Field

from services.settings import Settings


class RewardSettings(Settings):
    """What the loop does with scores."""

    max_hole_share: float = Field(0.2, ge=0, lt=1)
    """A step with a larger share of images without a training reward stops the run."""
    concurrency: int = Field(8, ge=1)
    """Tasks that are scored at the same time."""
