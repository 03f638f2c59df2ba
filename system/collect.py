"""One step's experience: tasks generated and scored at the same time, then compared."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from actors.learner.advantage import Advantages, advantages, mixed_advantages
from actors.reward.pool import Scores
from actors.rollout.fleet import Generated
from actors.rollout.in_flight import InFlight
from actors.rollout.plans.plan import Plan
from actors.trajectory import Cost, Task, Tree
from services.errors import UserError
from system.config import RunConfig
from system.launch import Roles


@dataclass
class Experience:
    """One step's tasks in index order, generated and scored."""

    generated: list[Generated]
    scores: list[Scores]
    rewards: list[np.ndarray]
    """(M,) combined reward of each task's leaves; NaN is a hole."""
    advantages: Advantages
    flat_groups: dict[str, float]
    """Share of groups that a training scorer cannot tell apart, by scorer."""
    peak_bytes: int
    """Most bytes of images in flight at once."""

    @property
    def cost(self) -> Cost:
        return sum((task.cost for task in self.generated), Cost())

    @property
    def num_scores(self) -> int:
        return sum(len(values) for score in self.scores for values in score.by_scorer.values())

    @property
    def scoring_s(self) -> float:
        """Seconds that replicas worked on it."""
        return sum(seconds for score in self.scores for seconds in score.busy_s.values())


def collect(
    config: RunConfig,
    roles: Roles,
    tasks: Sequence[Task],
    plans: Sequence[Plan],
    progress: Callable[[int, int], None],
) -> Experience:
    """Generate and score all tasks: one task is scored while the next is generated; then compare.

    Args:
        plans: of each task.
        progress: told (tasks generated, tasks).

    Raises:
        UserError: more holes than `reward.max_hole_share`.
    """
    image_bytes = config.policy.height * config.policy.width * 3
    room = InFlight(config.rollout.max_bytes_in_flight)
    generated: dict[int, Generated] = {}
    scored: dict[int, Future[Scores]] = {}

    def score(task: Generated) -> Scores:
        try:
            return roles.pool.score(task.images, [task.task.prompt] * task.tree.num_leaves, list(config.weights))
        finally:
            room.release(task.tree.num_leaves * image_bytes)

    with ThreadPoolExecutor(config.reward.concurrency, "score") as threads:
        for task in roles.fleet.generate(tasks, plans, room, image_bytes):
            generated[task.task.index] = task
            scored[task.task.index] = threads.submit(score, task)
            progress(len(generated), len(tasks))
        scores = [scored[i].result() for i in range(len(tasks))]
    roles.check_stop()
    in_order = [generated[i] for i in range(len(tasks))]
    rewards = [score.combined(config.weights) for score in scores]
    _refuse_holes(rewards, scores, config.reward.max_hole_share)
    trees = [task.tree for task in in_order]
    together, flat_groups = compare(config, trees, scores, rewards)
    return Experience(in_order, scores, rewards, together, flat_groups, room.peak)


def compare(
    config: RunConfig, trees: Sequence[Tree], scores: Sequence[Scores], rewards: Sequence[np.ndarray]
) -> tuple[Advantages, dict[str, float]]:
    """Advantages of a training step from the scores of each task's leaves, combined as the recipe says; and the share
    of groups that each training scorer cannot tell apart.

    Args:
        rewards: the scores of each task combined.
    """
    rule = config.advantage
    together = advantages(rule, trees, rewards)
    unpruned = rule.model_copy(update={"keep": None})
    alone = {name: advantages(unpruned, trees, [score.by_scorer[name] for score in scores]) for name in config.weights}
    if config.reward.combine == "group_norm":
        together = mixed_advantages(rule, trees, together, config.weights, alone)
    return together, {name: compared.flat_groups for name, compared in alone.items()}


def _refuse_holes(rewards: Sequence[np.ndarray], scores: Sequence[Scores], bound: float) -> None:
    holes = np.isnan(np.concatenate(rewards))
    if holes.mean() <= bound:
        return
    reasons = {name: reason for score in scores for name, reason in score.errors.items()}
    why = "; ".join(f"scorer `{name}`: {reason}" for name, reason in reasons.items())
    raise UserError(
        f"{holes.sum()} of {len(holes)} images have no reward ({why or 'the scorers returned NaN'}); "
        "mend the scorer, or raise reward.max_hole_share"
    )
