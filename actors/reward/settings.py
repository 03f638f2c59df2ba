"""The training loop's settings for the reward pool."""

from typing import Literal

from pydantic import Field

from services.base.settings import Settings

CombineRule = Literal["raw", "group_norm", "gdpo"]


class RewardSettings(Settings):
    """The source of scores, and how the training loop uses them."""

    app: str | None = None
    """The name of a Serve application: a pool that already runs on this cluster (`tempflow serve`) and has the recipe's
    scorers. If not given, the run starts its own pool."""
    combine: CombineRule = "raw"
    """How the scores of several scorers become one advantage. `raw` adds the weighted scores and normalises the sum.
    `group_norm` normalises each scorer's scores within their groups and adds the weighted advantages, so that the
    scorers' scales do not matter. `gdpo` does the same, and then divides the sums by their root mean square over the
    step, so that neither the number of scorers nor their weights change the size of the advantages."""
    max_hole_share: float = Field(0.2, ge=0, lt=1)
    """The largest share of images without a training reward. A step with a larger share stops the run."""
    concurrency: int = Field(8, ge=1)
    """The number of tasks that are scored at the same time."""
