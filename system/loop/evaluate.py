"""Evaluates a policy on held-out prompts, with the same noise each time, so that policies are compared in pairs."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa

from actors.policy.weights import Exported
from actors.reward.scores import Scores, gathered, why_holes
from actors.rollout.results import Sampled
from actors.rollout.sampling import Sampling
from services.base.errors import UserError
from system.loop.evaluation import Evaluation
from system.loop.heldout import HeldOut
from system.loop.prompts import rows_for
from system.loop.roles import Roles
from system.loop.scoring import scored
from system.loop.stop import as_done
from system.recipe.model import RunConfig

log = logging.getLogger(__name__)

EVAL_STREAM = -1
"""Takes the place of the training step in the noise's address."""

Watcher = Callable[[HeldOut, int, np.ndarray], None]
"""Called with a set, the number of the first of some images in the set, and their pixels (N, H, W, 3) uint8. It may be
called from another thread."""


@dataclass
class _Pending:
    """The jobs of one set that are running."""

    of: HeldOut
    outcomes: list[Future[tuple[Sampled, Scores]]] = field(default_factory=list)
    grid: dict[int, np.ndarray] = field(default_factory=dict)


def evaluate(
    roles: Roles,
    config: RunConfig,
    sets: Iterable[HeldOut],
    check_stop: Callable[[], None],
    weights: Exported | None = None,
    sampling: Sampling | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    watch: Watcher | None = None,
) -> dict[str, Evaluation]:
    """Generate the images of each held-out prompt and score them with the scorers of its set.

    Image k of a prompt starts from the same noise at each evaluation.

    Args:
        check_stop: called while waiting; raises to end the wait.
        weights: the weights to sample from; None if the base model takes all steps of `sampling`.
        sampling: how images are sampled. If not given, as the recipe says.
        progress: called with the number of scored batches and of all batches.
        watch: called with all images.

    Returns:
        The evaluation of each set by name.

    Raises:
        UserError: no image of a set has a score of a scorer that enters the training reward.
    """
    pending = [_begin(roles, config, one, weights, sampling or config.eval_sampling, watch) for one in sets]
    outcomes = [outcome for each in pending for outcome in each.outcomes]
    finished = 0
    for done in as_done(outcomes, check_stop):
        for outcome in done:
            outcome.result()  # An error ends the wait at once.
        finished += len(done)
        progress(finished, len(outcomes))
    return {each.of.name: _evaluation(config, each) for each in pending}


def _begin(
    roles: Roles,
    config: RunConfig,
    of: HeldOut,
    weights: Exported | None,
    sampling: Sampling,
    watch: Watcher | None,
) -> _Pending:
    """Start the jobs of a set. All images of a prompt are in one job."""
    each, names, pending = of.images_per_prompt, [scorer.name for scorer in of.scorers], _Pending(of)
    size = max(1, config.eval.batch // each)
    for start in range(0, of.count, size):
        batch = [row for row in range(start, min(start + size, of.count)) for _ in range(each)]
        texts = [of.prompts[row] for row in batch]
        addresses = [(config.seed, EVAL_STREAM, row, i % each) for i, row in enumerate(batch)]
        sampled = roles.rollouts.sample(texts, addresses, sampling, weights)
        shown, first = start * each < config.eval.grid, start * each
        look = partial(_look, pending, first, shown, watch) if shown or watch else None
        rows = rows_for(of.scorers, of.prompts, batch)
        pending.outcomes.append(scored(sampled, roles.rewards, texts, names, look, rows, group=each))
    return pending


def _look(pending: _Pending, first: int, shown: bool, watch: Watcher | None, sampled: Sampled) -> None:
    pixels_NHWC = sampled.images.pixels()
    if shown:
        pending.grid[first] = pixels_NHWC
    if watch:
        watch(pending.of, first, pixels_NHWC)


def _evaluation(config: RunConfig, pending: _Pending) -> Evaluation:
    of, each = pending.of, pending.of.images_per_prompt
    scores = [outcome.result()[1] for outcome in pending.outcomes]
    columns = gathered(scores)
    _look_at_holes(columns, scores, [scorer.name for scorer in config.reward_scorers])
    rows = [row for row in range(of.count) for _ in range(each)]
    table = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "image": pa.array([i % each for i in range(len(rows))], pa.int64()),
            "prompt": pa.array([of.prompts[row] for row in rows], pa.string()),
            "category": pa.array([of.prompts.category(row) for row in rows], pa.string()),
            **columns,
        }
    )
    pictures = [pending.grid[first] for first in sorted(pending.grid)]
    grid_NHWC = np.concatenate(pictures)[: config.eval.grid] if pictures else np.zeros((0, 1, 1, 3))
    return Evaluation(of, table, grid_NHWC)


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
