"""What an evaluation found: the scores of held-out images, and their means."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actors.trajectory import Cost
from system.loop.heldout import HeldOut
from system.recipe.evaluation import DEFAULT_SET
from system.recipe.model import RunConfig

NOT_SCORES = ("row", "image", "prompt", "category")
"""The columns of an evaluation's table that are no scores."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of each held-out image of one set, in the order of the file."""

    of: HeldOut
    table: pa.Table
    """Columns row, image (its number among the images of the prompt), prompt, category, and one for each scorer and
    sub-score (NaN is a hole)."""
    grid_NHWC: np.ndarray
    """The first images, uint8."""
    cost: Cost
    scored: int

    @property
    def scores(self) -> list[str]:
        """The scorers, and their sub-scores as SCORER.SUB."""
        return [name for name in self.table.column_names if name not in NOT_SCORES]

    def summary(self) -> dict[str, float]:
        """The mean score of each scorer and sub-score as `eval/NAME`, and of each category as `eval/NAME/CATEGORY`.

        Holes are left out and counted as `eval_holes/NAME`. The keys of a named set begin with `eval.SET/` and
        `eval_holes.SET/`.
        """
        categories = self.table["category"].to_pylist()
        at, summary = self.of.prefix, {}
        for name in self.scores:
            scores = self.table[name].to_numpy()
            summary[f"eval{at}/{name}"] = _mean(scores)
            summary[f"eval_holes{at}/{name}"] = int(np.isnan(scores).sum())
            for category in sorted({c for c in categories if c is not None}):
                chosen = np.array([c == category for c in categories])
                summary[f"eval{at}/{name}/{category}"] = _mean(scores[chosen])
        return summary

    def reward(self, config: RunConfig) -> float | None:
        """What is trained for, on held-out prompts: the weighted mean scores.

        Returns:
            None where a mean is not known (`mean_of`).
        """
        means = [(weight, self.mean_of(name, config)) for name, weight in config.weights.items()]
        if any(mean is None for _, mean in means):
            return None
        return sum(weight * mean for weight, mean in means if mean is not None)

    def mean_of(self, name: str, config: RunConfig) -> float | None:
        """The mean of a score.

        Returns:
            None if it was not scored here or has too many holes: the images that have a score may be the easy ones.
        """
        if name not in self.scores:
            return None
        scores = self.table[name].to_numpy()
        mean = _mean(scores)
        too_many = np.isnan(scores).sum() > config.reward.max_hole_share * len(scores)
        return None if too_many or math.isnan(mean) else mean


def best_by(config: RunConfig, evaluations: Mapping[str, Evaluation]) -> float | None:
    """The score that chooses the best checkpoint (`eval.best`); None where it is not known."""
    chosen = config.eval.chosen_by()
    if chosen is None:
        return evaluations[DEFAULT_SET].reward(config) if DEFAULT_SET in evaluations else None
    name, scorer = chosen
    return evaluations[name].mean_of(scorer, config) if name in evaluations else None


def _mean(scores: np.ndarray) -> float:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")
