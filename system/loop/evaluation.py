"""The result of an evaluation: the scores of held-out images, and their means."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actors.reward.counted import as_counted
from system.loop.heldout import HeldOut
from system.recipe.evaluation import DEFAULT_SET
from system.recipe.model import RunConfig

NOT_SCORES = ("row", "image", "prompt", "category")
"""The columns of an evaluation's table that are not scores."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of each held-out image of one set, in the order of the prompt file."""

    of: HeldOut
    table: pa.Table
    """Columns row, image (its number among the images of the prompt), prompt, category, and one for each scorer and
    sub-score (NaN is a hole)."""
    grid_NHWC: np.ndarray
    """The first images, uint8."""

    @property
    def scores(self) -> list[str]:
        """The scorers, and their sub-scores as SCORER.SUB."""
        return [name for name in self.table.column_names if name not in NOT_SCORES]

    def summary(self) -> dict[str, float]:
        """The mean score of each scorer and sub-score as `eval/NAME`, and of each category as `eval/NAME/CATEGORY`.

        Holes are left out and counted as `eval_holes/NAME`. `eval_error/NAME` is the standard error of the mean over
        prompts. The keys of a named set begin with `eval.SET/`, `eval_holes.SET/` and `eval_error.SET/`.
        """
        categories = self.table["category"].to_pylist()
        at, summary = self.of.prefix, {}
        for name in self.scores:
            scores = self.table[name].to_numpy()
            summary[f"eval{at}/{name}"] = _mean(scores)
            summary[f"eval_error{at}/{name}"] = _standard_error(scores, self.table["row"].to_numpy())
            summary[f"eval_holes{at}/{name}"] = int(np.isnan(scores).sum())
            for category in sorted({c for c in categories if c is not None}):
                chosen = np.array([c == category for c in categories])
                summary[f"eval{at}/{name}/{category}"] = _mean(scores[chosen])
        return summary

    def reward(self, config: RunConfig) -> float | None:
        """The training reward on held-out prompts: the sum of the scorers' weighted mean scores, clipped, gated and
        scaled as in training.

        Returns:
            None if the mean of a scorer is not known (`mean_of`).
        """
        if not {scorer.name for scorer in config.training_scorers} <= set(self.scores):
            return None
        scores = {name: self.table[name].to_numpy() for name in self.scores}
        categories, total = self.table["category"].to_pylist(), 0.0
        for scorer in config.reward_scorers:
            weight_N = np.array([scorer.weight_in(category) for category in categories])
            values_N = as_counted(scorer, scores)
            if _too_many_holes(values_N[weight_N != 0], config):
                return None
            total += _mean(np.where(weight_N != 0, weight_N * values_N, 0.0))
        return None if math.isnan(total) else total

    def mean_of(self, name: str, config: RunConfig) -> float | None:
        """The mean of a score.

        Returns:
            None if the score is not in the table, or has too many holes: the images with a score may be the easy ones.
        """
        if name not in self.scores:
            return None
        scores = self.table[name].to_numpy()
        mean = _mean(scores)
        return None if _too_many_holes(scores, config) or math.isnan(mean) else mean


def best_by(config: RunConfig, evaluations: Mapping[str, Evaluation]) -> float | None:
    """The score that chooses the best checkpoint (`eval.best`); None if it is not known."""
    chosen = config.eval.chosen_by()
    if chosen is None:
        return evaluations[DEFAULT_SET].reward(config) if DEFAULT_SET in evaluations else None
    name, scorer = chosen
    return evaluations[name].mean_of(scorer, config) if name in evaluations else None


def mean_by_prompt(row_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
    """The mean score of the images of each prompt, (P,), in the order of the rows.

    Args:
        row_N: the row of each image's prompt.
        score_N: the score of each image, without holes.
    """
    _, prompt_N = np.unique(row_N, return_inverse=True)
    return np.bincount(prompt_N, score_N) / np.bincount(prompt_N)


def _mean(scores: np.ndarray) -> float:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")


def _standard_error(scores: np.ndarray, rows: np.ndarray) -> float:
    """The standard error of the mean score of the prompts; NaN if fewer than two prompts have a score."""
    known = ~np.isnan(scores)
    means = mean_by_prompt(rows[known], scores[known])
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")


def _too_many_holes(scores: np.ndarray, config: RunConfig) -> bool:
    return bool(np.isnan(scores).sum() > config.reward.max_hole_share * len(scores))
