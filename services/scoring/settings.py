"""Settings of the reward models."""

from typing import Any

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from services.base.settings import Gpus, Settings

COLUMNS = frozenset({"row", "prompt", "image", "category", "model", "error"})
"""Columns of tables in which each scorer has one of its name: the pool's answers, and the Parquet file of `eval`."""


class Replicas(Settings):
    """How many processes run a scorer: a number, or bounds between which load decides.

    The defaults suit bursts: a step's images come at once, then none for a while.
    """

    min: int = Field(1, ge=1)
    """The smallest number of processes."""
    max: int = Field(1, ge=1)
    """The largest number of processes."""
    target: float = Field(2, gt=0)
    """Requests that a replica works on or has waiting. More of them add replicas."""
    grow_after_s: float = Field(2, ge=0)
    """Seconds of load above the target after which replicas are added."""
    shrink_after_s: float = Field(600, ge=0)
    """Seconds of load below the target after which replicas are removed. It should be more than two training steps,
    since a large model takes minutes to load."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"min": value, "max": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _ordered(self) -> "Replicas":
        if self.max < self.min:
            raise ValueError(f"max is {self.max}, below min, {self.min}")
        return self


class ScorerSettings(Settings):
    """One reward model, run as one Serve deployment."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Its name in metrics, the experience log and the report."""
    scorer: str
    """A built-in scorer (pickscore, clipscore, hpsv3, ocr, geneval, remote, jpeg_size), or the import path
    `package.module:Class` of your own."""
    weight: float = 1.0
    """Its share of the training reward; 0 scores held-out images only."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the scorer's constructor."""
    replicas: Replicas = Replicas()
    """How many processes run the scorer: a number such as `4`, or bounds such as `{min: 1, max: 8}`."""
    num_cpus: float = Field(1, ge=0)
    """CPUs that Ray reserves for one replica."""
    num_gpus: Gpus = 0
    """GPUs that Ray reserves for one replica: a fraction of one, or a whole number."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the Ray nodes that replicas may be placed on; any node if empty."""
    threads: int = Field(1, ge=1)
    """CPU threads of one replica. They are part of the arithmetic: another number gives other last bits."""
    timeout_s: float = Field(600, gt=0)
    """Seconds that a request may take before it counts as failed."""
    attempts: int = Field(3, ge=1)
    """Tries before the images of a request are holes."""
    request_images: int = Field(64, ge=1)
    """Images of one request. A task's images are split into such requests, which replicas take side by side. It is also
    the most images that a replica scores at once when requests of several callers meet."""
    max_ongoing: int = Field(4, ge=1)
    """Requests that a replica holds at once. Those that wait in it are scored together."""
    max_queued: int = Field(256, ge=1)
    """Requests of one caller that may wait for a replica. More are refused, and sent again later."""

    @field_validator("name")
    @classmethod
    def _is_no_column(cls, name: str) -> str:
        if name in COLUMNS:
            said = "a column of the tables that scores go to has this name; give the scorer another one"
            raise PydanticCustomError("name_of_a_column", said)
        return name
