"""Settings of the reward models."""

from typing import Any

from pydantic import Field

from services.settings import Settings


class ScorerSettings(Settings):
    """One reward model, run as one Serve deployment."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Its name in metrics, the experience log and the report."""
    scorer: str
    """A built-in scorer (see `BUILT_IN` in scorer.py) or the import path `package.module:Class` of your own."""
    weight: float = 1.0
    """Its share of the training reward; 0 scores held-out images only."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the scorer."""
    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    threads: int = Field(1, ge=1)
    """CPU threads of one replica. Part of the arithmetic: another count gives other last bits."""
    timeout_s: float = Field(600, gt=0)
    """One request of one task's images."""
    attempts: int = Field(3, ge=1)
    """Tries before the images of a task are holes."""
