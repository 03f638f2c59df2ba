"""The saved result of a finished run. It is small enough to keep in a repository."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.base.errors import UserError
from services.base.storage import write_atomically
from services.base.text import read_text
from services.base.yaml_text import load_yaml
from system.recipe.model import RunConfig
from system.report.data import by_sampling_step
from system.run.files import RunFiles


@dataclass(frozen=True)
class Point:
    """One evaluation of the policy."""

    step: int
    nfe: int
    decodes: int
    scores: int
    seconds: float
    """Seconds of training so far, without evaluations."""
    held_out: dict[str, float | None]
    """Mean held-out score by scorer."""


@dataclass(frozen=True)
class Result:
    """The result of one run."""

    contender: str
    """The name of the contender."""
    seed: int
    key: str
    """The digest of the run's recipe, including steps and evaluations. Runs with equal keys have equal recipes."""
    made_by: str
    """The version and commit of tempflow, with a mark if the checkout was changed."""
    recipe: dict[str, Any]
    """Plan, kernel, advantage, objective, prompts per step and learning rate of the resolved recipe."""
    trained_on: list[str]
    """Scorers of the training reward."""
    points: list[Point]
    spread: list[float | None]
    """The reward's standard deviation within a group by sampling step, mean over the run."""

    def save(self, path: Path) -> None:
        write_atomically(path, f"{json.dumps(asdict(self), indent=1)}\n".encode())

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read a file that `save` wrote.

        Raises:
            UserError: the file is not a result.
        """
        try:
            raw = json.loads(path.read_text())
            return cls(**{**raw, "points": [Point(**point) for point in raw["points"]]})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a result of `tempflow compare` ({error}); delete it") from error


def key_of(config: RunConfig) -> str:
    """A digest of a recipe's settings, without `name` and `output`.

    Defaults are left out, so that a new setting in a later version does not invalidate all earlier results.
    """
    resolved = config.model_dump(mode="json", exclude={"name", "output"}, exclude_defaults=True)
    return hashlib.blake2b(json.dumps(resolved, sort_keys=True).encode(), digest_size=8).hexdigest()


def condense(run: Path, contender: str, key: str) -> Result:
    """Extract the result from the folder of a finished run."""
    config = load_yaml(read_text(run / "config.yaml"), str(run / "config.yaml"))
    lines = RunFiles(run).read_metrics()
    scorers = [scorer["name"] for scorer in config["scorers"]]
    seconds, points = 0.0, []
    for line in lines:
        seconds += line.get("seconds/step", 0.0) - (line.get("seconds/eval", 0.0) if line["step"] else 0.0)
        if f"eval/{scorers[0]}" in line:
            held_out = {name: line[f"eval/{name}"] for name in scorers}
            counts = {key: line[key] for key in ("step", "nfe", "decodes", "scores")}
            points.append(Point(**counts, seconds=round(seconds, 2), held_out=held_out))
    return Result(
        contender,
        config["seed"],
        key,
        _made_by(config.get("tempflow", {})),
        {key: config[key] for key in ("plan", "kernel", "advantage", "objective")}
        | {"prompts_per_step": config["data"]["prompts_per_step"], "lr": config["learner"]["lr"]},
        [scorer["name"] for scorer in config["scorers"] if scorer["weight"]],
        points,
        [None if math.isnan(mean) else round(mean, 5) for mean in by_sampling_step(lines, "branch/std").tolist()],
    )


def _made_by(version: dict[str, str | None]) -> str:
    """tempflow's version and the first digits of its commit."""
    commit, dirty, _ = (version.get("commit") or "").partition("-dirty")
    return " ".join(part for part in (version.get("version"), commit[:12] + dirty) if part)
