"""Scores on held-out prompts: the same prompts and noise each time, so that states can be compared in pairs."""

import logging
import math
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from actors.policy.weights import Exported
from actors.reward.counted import as_counted
from actors.reward.scores import Scores, gathered, why_holes
from actors.rollout.results import Sampled
from actors.trajectory import Cost
from services.base.errors import UserError
from services.scoring.scorer import needs_of
from system.loop.prompts import Prompts, rows_for
from system.loop.roles import Roles
from system.loop.scoring import scored
from system.loop.stop import as_done
from system.recipe.model import RunConfig

log = logging.getLogger(__name__)

EVAL_STREAM = -1
"""Takes the place of the training step in the noise's address."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of each held-out image, in the order of the file."""

    table: pa.Table
    """Columns row, prompt, category, and one for each scorer and sub-score (NaN is a hole)."""
    grid_NHWC: np.ndarray
    """The first images, uint8."""
    cost: Cost
    scored: int

    @property
    def scores(self) -> list[str]:
        """The scorers, and their sub-scores as SCORER.SUB."""
        return [name for name in self.table.column_names if name not in ("row", "prompt", "category")]

    def summary(self) -> dict[str, float]:
        """The mean score of each scorer and sub-score as `eval/NAME`, and of each category as `eval/NAME/CATEGORY`.

        Holes are left out and counted as `eval_holes/NAME`. `eval_error/NAME` is the standard error of the mean.
        """
        categories = self.table["category"].to_pylist()
        summary = {}
        for name in self.scores:
            scores = self.table[name].to_numpy()
            summary[f"eval/{name}"] = _mean(scores)
            summary[f"eval_error/{name}"] = _standard_error(scores)
            summary[f"eval_holes/{name}"] = int(np.isnan(scores).sum())
            for category in sorted({c for c in categories if c is not None}):
                chosen = np.array([c == category for c in categories])
                summary[f"eval/{name}/{category}"] = _mean(scores[chosen])
        return summary

    def reward(self, config: RunConfig) -> float | None:
        """What is trained for, on held-out prompts: the sum of the scorers' weighted mean scores, clipped, gated and
        scaled as in training.

        Returns:
            None where a mean is not known, as that of a groupwise scorer, or has too many holes: the images that have a
            score may be the easy ones.
        """
        if not {scorer.name for scorer in config.training_scorers} <= set(self.scores):
            return None
        scores = {name: self.table[name].to_numpy() for name in self.scores}
        categories, total = self.table["category"].to_pylist(), 0.0
        for scorer in config.reward_scorers:
            weight_N = np.array([scorer.weight_in(category) for category in categories])
            values_N = as_counted(scorer, scores)
            if (np.isnan(values_N) & (weight_N != 0)).sum() > config.reward.max_hole_share * (weight_N != 0).sum():
                return None
            total += _mean(np.where(weight_N != 0, weight_N * values_N, 0.0))
        return None if math.isnan(total) else total


def _mean(scores: np.ndarray) -> float:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")


def _standard_error(scores: np.ndarray) -> float:
    """The standard error of the mean of the known scores; NaN for fewer than two."""
    known = scores[~np.isnan(scores)]
    return float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")


def evaluate(
    roles: Roles,
    config: RunConfig,
    prompts: Prompts,
    check_stop: Callable[[], None],
    weights: Exported | None = None,
    base: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Evaluation:
    """Generate one deterministic image for each held-out prompt and score it with all scorers of the recipe.

    Groupwise scorers are left out, because a held-out image has no siblings to be compared with.

    Args:
        check_stop: called while waiting; raises to end the wait.
        weights: the weights to sample from; None for those that the model came with.
        base: sample from the model without what is trained.
        progress: told (batches scored, batches).

    Raises:
        UserError: no image has a score of a scorer that enters the training reward.
    """
    settings, scorers = config.eval, [scorer for scorer in config.scorers if not needs_of(scorer).groupwise]
    names = [scorer.name for scorer in scorers]
    rows = range(min(settings.prompts, len(prompts)))
    batches = [rows[start : start + settings.batch] for start in range(0, len(rows), settings.batch)]
    grid: dict[int, np.ndarray] = {}
    outcomes: list[Future[tuple[Sampled, Scores]]] = []
    for batch in batches:
        texts = [prompts[row] for row in batch]
        addresses = [(config.seed, EVAL_STREAM, row, 0) for row in batch]
        sampled = roles.rollouts.sample(texts, addresses, config.eval_steps, weights, base)
        keep = partial(_keep_pixels, grid, batch[0]) if batch[0] < settings.grid else None
        outcomes.append(scored(sampled, roles.rewards, texts, names, keep, rows_for(scorers, prompts, batch)))
    finished = 0
    for done in as_done(outcomes, check_stop):
        for outcome in done:
            outcome.result()  # An error ends the wait at once.
        finished += len(done)
        progress(finished, len(outcomes))
    jobs, scores = zip(*(outcome.result() for outcome in outcomes), strict=True)
    columns = gathered(scores)
    _look_at_holes(columns, scores, [scorer.name for scorer in config.reward_scorers])
    table = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "prompt": pa.array([prompts[row] for row in rows], pa.string()),
            "category": pa.array([prompts.category(row) for row in rows], pa.string()),
            **columns,
        }
    )
    pictures = [grid[first] for first in sorted(grid)]
    grid_NHWC = np.concatenate(pictures)[: settings.grid] if pictures else np.zeros((0, 1, 1, 3))
    return Evaluation(table, grid_NHWC, sum((job.cost for job in jobs), Cost()), len(rows) * len(names))


def _keep_pixels(grid: dict[int, np.ndarray], first: int, sampled: Sampled) -> None:
    grid[first] = sampled.images.pixels()


def _look_at_holes(columns: dict[str, np.ndarray], scores: Sequence[Scores], needed: Collection[str]) -> None:
    """Log the images without a score.

    Raises:
        UserError: no image has a score of a scorer that is needed.
    """
    for name, values in columns.items():
        holes = int(np.isnan(values).sum())
        if holes == len(values) and name in needed:
            said = f"no held-out image has a score of `{name}` ({why_holes(scores)})"
            raise UserError(f"{said}; fix the cause and continue with --resume")
        if holes:
            why = why_holes(scores)
            log.warning("%d of %d held-out images have no score of `%s` (%s)", holes, len(values), name, why)
