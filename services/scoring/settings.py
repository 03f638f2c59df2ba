"""Settings of the reward models."""

from typing import Annotated, Any

from pydantic import Field, Strict, field_validator, model_validator
from pydantic_core import PydanticCustomError

from services.base.settings import Gpus, Settings

COLUMNS = frozenset({"row", "prompt", "image", "category", "model", "set", "error"})
"""Column names that a scorer must not have, because the pool's answers and `eval`'s Parquet files use them.

In these tables each scorer has a column with its own name."""


class Replicas(Settings):
    """The number of processes (replicas) that run a scorer: fixed, or between two bounds according to load.

    The defaults suit bursts: a step's images come at once, then none come for a while.
    """

    min: int = Field(1, ge=1)
    """The smallest number of processes."""
    max: int = Field(1, ge=1)
    """The largest number of processes."""
    target: float = Field(2, gt=0)
    """The number of requests per replica, worked on or waiting, above which replicas are added."""
    grow_after_s: float = Field(2, ge=0)
    """Seconds of load above the target after which replicas are added."""
    shrink_after_s: float = Field(600, ge=0)
    """Seconds of load below the target after which replicas are removed. Set it to more than two training steps,
    because a large model takes minutes to load again."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"min": value, "max": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _ordered(self) -> "Replicas":
        if self.max < self.min:
            raise ValueError(f"max is {self.max}, which is less than min, {self.min}")
        return self


class GateSettings(Settings):
    """The bounds of a score within which another score counts."""

    score: str = Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?$")
    """The score that opens the gate: the name of a scorer, or SCORER.SUB for a sub-score. It is compared with the
    bounds as its scorer returns it. With weight 0, this scorer scores training images for the gate alone."""
    min: float | None = None
    """The smallest value that opens the gate."""
    max: float | None = None
    """The largest value that opens the gate."""
    otherwise: float = 0.0
    """What the gated scorer's score is where the gate is closed, before `scale`. It should be as low as the scorer's
    lowest scores: 0 for a score from 0 to 1. A higher value rewards images that close the gate."""

    @property
    def scorer(self) -> str:
        """The name of the scorer that gives the score."""
        return self.score.partition(".")[0]

    @model_validator(mode="after")
    def _bounded(self) -> "GateSettings":
        if self.min is None and self.max is None:
            raise ValueError("it has no bound; set min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min:g}, which is more than max, {self.max:g}")
        return self


class ScorerSettings(Settings):
    """One reward model, run as one Serve deployment."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """The scorer's name in metrics, the experience log and the report."""
    scorer: str
    """A built-in scorer (pickscore, clipscore, clip, hpsv2, aesthetic, imagereward, hpsv3, ocr, geneval,
    geneval2, vlm_judge, vlm_pairs, remote, remote_groupwise, diversity, jpeg_size), or the import path
    `package.module:Class` of your own."""
    weight: float = 1.0
    """The scorer's weight in the training reward. With 0, it scores held-out images only."""
    category_weights: dict[str, float] = Field(default_factory=dict)
    """Weights that replace `weight` for prompts of a category, a value of the column `data.category_column`, such as
    `{text: 2, counting: 0}`. A training image whose weight is 0 is not scored."""
    clip: Annotated[tuple[float | None, float | None], Strict(False)] | None = None
    """The bounds `[low, high]` that the score is clipped to in the training reward; `null` leaves a side open."""
    gate: GateSettings | None = None
    """Another score that must lie within bounds for this one to count in the training reward."""
    scale: float = Field(1.0, gt=0)
    """The clipped and gated score is multiplied by this in the training reward. It brings scorers to a common scale, so
    that weights compare them: 0.01 for a score from 0 to 100."""
    reward: str | Annotated[dict[str, float], Field(min_length=1)] | None = None
    """For a scorer with sub-scores: the one that is its score, such as `colour`, or the weights of several, such as
    `{colour: 0.7, shape: 0.3}`. If not given, it is the sub-score `score`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the scorer's constructor."""
    replicas: Replicas = Replicas()
    """The number of processes that run the scorer, such as `4`, or bounds, such as `{min: 1, max: 8}`."""
    num_cpus: float = Field(1, ge=0)
    """CPUs that Ray reserves for one replica."""
    num_gpus: Gpus = 0
    """GPUs that Ray reserves for one replica: a fraction of one GPU, or a whole number."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a Ray node must have to run replicas. If empty, any node may run them."""
    threads: int = Field(1, ge=1)
    """CPU threads of one replica. Another number changes the last bits of the scores."""
    timeout_s: float = Field(600, gt=0)
    """Seconds without any answer of the scorer, after which all requests that wait for it count as failed."""
    attempts: int = Field(3, ge=1)
    """How often a request is tried before its images become holes."""
    request_images: int = Field(64, ge=1)
    """Images in one request. A task's images are split into such requests, which replicas score in parallel. A replica
    that scores requests of several callers together takes at most this many images at once."""
    max_ongoing: int = Field(4, ge=1)
    """Requests that a replica accepts at once. Those that wait in it are scored together."""
    max_queued: int = Field(256, ge=1)
    """Requests of one caller that may wait for a replica. Further ones are refused and sent again later."""

    @field_validator("clip")
    @classmethod
    def _is_range(cls, clip: tuple[float | None, float | None] | None) -> tuple[float | None, float | None] | None:
        if clip == (None, None):
            raise ValueError("both sides are open; give a number, or leave it out")
        if clip is not None and None not in clip and clip[0] >= clip[1]:  # type: ignore[operator]
            raise ValueError("the first number must be less than the second")
        return clip

    @property
    def is_reward(self) -> bool:
        """Whether the scorer has a weight in the training reward, at least in one category."""
        return any([self.weight, *self.category_weights.values()])

    def weight_in(self, category: str | None) -> float:
        """The scorer's weight for prompts of a category; None for a prompt without one."""
        return self.weight if category is None else self.category_weights.get(category, self.weight)

    @field_validator("name")
    @classmethod
    def _is_no_column(cls, name: str) -> str:
        if name in COLUMNS:
            said = "the tables of scores already have a column with this name; give the scorer another name"
            raise PydanticCustomError("name_of_a_column", said)
        return name
