"""Settings of the reward pool as the training loop uses it."""

from typing import Literal

from pydantic import Field

from services.base.settings import Settings


class RewardSettings(Settings):
    """Where scores come from and what the loop does with them."""

    app: str | None = None
    """The Serve application of a pool that already runs on this cluster (`tempflow serve`) and has scorers with the
    recipe's names. If not given, the run starts a pool of its own."""
    combine: Literal["raw", "group_norm"] = "raw"
    """How several scorers make one advantage: `raw` adds the weighted scores and normalises the sum; `group_norm`
    normalises each scorer within its groups and adds the weighted advantages, so that scales do not matter."""
    max_hole_share: float = Field(0.2, ge=0, lt=1)
    """A step with a larger share of images without a training reward stops the run."""
    concurrency: int = Field(8, ge=1)
    """Tasks that are scored at the same time."""
