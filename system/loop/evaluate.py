"""Scores on held-out prompts: the same prompts and noise each time, so that states can be compared in pairs."""

import logging
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from actors.policy.weights import Exported
from actors.reward.pool import RewardPool, Scores, why_holes
from actors.rollout.fleet import Fleet
from actors.trajectory import Cost
from services.base.errors import UserError
from system.loop.prompts import Prompts
from system.loop.stop import as_done
from system.recipe.model import EvalSettings

log = logging.getLogger(__name__)

EVAL_STREAM = -1
"""Takes the place of the training step in the noise's address."""
IMAGES_TIMEOUT_S = 120


@dataclass(frozen=True)
class Evaluation:
    """Scores of each held-out image, in the order of the file."""

    table: pa.Table
    """row, prompt, category, and a column a scorer (NaN is a hole)."""
    grid_NHWC: np.ndarray
    """The first images, uint8."""
    cost: Cost
    scored: int

    def summary(self, scorers: list[str]) -> dict[str, float]:
        """Mean score, overall as `eval/NAME` and a category as `eval/NAME/CATEGORY`; holes are left out, and counted as
        `eval_holes/NAME`.
        """
        categories = self.table["category"].to_pylist()
        summary = {}
        for name in scorers:
            scores = self.table[name].to_numpy()
            summary[f"eval/{name}"] = _mean(scores)
            summary[f"eval_holes/{name}"] = int(np.isnan(scores).sum())
            for category in sorted({c for c in categories if c is not None}):
                chosen = np.array([c == category for c in categories])
                summary[f"eval/{name}/{category}"] = _mean(scores[chosen])
        return summary


def _mean(scores: np.ndarray) -> float:
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else float("nan")


def evaluate(
    fleet: Fleet,
    pool: RewardPool,
    prompts: Prompts,
    scorers: list[str],
    needed: Collection[str],
    settings: EvalSettings,
    seed: int,
    num_steps: int,
    check_stop: Callable[[], None],
    weights: Exported | None = None,
    base: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Evaluation:
    """Generate one deterministic image a prompt with the fleet and score them all.

    Args:
        needed: scorers that must give at least one score.
        num_steps: T of these images.
        check_stop: called while waiting; raises to end the wait.
        weights: to sample from; what the model came with if not given.
        base: sample from the model without its adapter.
        progress: told (batches done, batches).

    Raises:
        UserError: no image has a score of a scorer that is needed.
    """
    rows = range(min(settings.prompts, len(prompts)))
    texts = [prompts[row] for row in rows]
    chunks = [rows[start : start + settings.batch] for start in range(0, len(rows), settings.batch)]
    cost = Cost()
    scored: dict[int, Future[Scores]] = {}
    grid: dict[int, np.ndarray] = {}
    threads = ThreadPoolExecutor(len(fleet) + 1, "evaluate")
    try:
        sampled: dict[Future[tuple[ray.ObjectRef, np.ndarray, Cost]], int] = {}
        for index, chunk in enumerate(chunks):
            addresses = [(seed, EVAL_STREAM, row, 0) for row in chunk]
            job = fleet.sample([texts[row] for row in chunk], addresses, num_steps, weights, base)
            sampled[job] = index
        for done in as_done(sampled, check_stop):
            for job in done:
                index = sampled.pop(job)
                images, finite_N, spent = job.result()
                cost += spent
                if chunks[index][0] < settings.grid:
                    grid[index] = ray.get(images, timeout=IMAGES_TIMEOUT_S)
                chunk_texts = [texts[row] for row in chunks[index]]
                scored[index] = threads.submit(pool.score, images, chunk_texts, scorers, finite_N)
            progress(len(scored), len(chunks))
        for finished in as_done(scored.values(), check_stop):
            for score in finished:
                score.result()
        scores = [scored[index].result() for index in range(len(chunks))]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    columns = {name: np.concatenate([score.by_scorer[name] for score in scores]) for name in scorers}
    for name, values in columns.items():
        holes = int(np.isnan(values).sum())
        if holes == len(values) and name in needed:
            said = f"no held-out image has a score of `{name}` ({why_holes(scores)})"
            raise UserError(f"{said}; fix the cause and continue with --resume")
        if holes:
            why = why_holes(scores)
            log.warning("%d of %d held-out images have no score of `%s` (%s)", holes, len(values), name, why)
    table = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "prompt": pa.array(texts, pa.string()),
            "category": pa.array([prompts.category(row) for row in rows], pa.string()),
            **columns,
        }
    )
    pictures = (
        np.concatenate([grid[index] for index in sorted(grid)])[: settings.grid] if grid else np.zeros((0, 1, 1, 3))
    )
    return Evaluation(table, pictures, cost, len(rows) * len(scorers))
