"""The experience of one training step: what was generated, its scores and its advantages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actors.reward.scores import Scores, why_holes
from actors.rollout.results import Generated
from actors.trajectory import Cost, Tree
from services.base.errors import UserError
from system.loop.advantage import Advantages, advantages, mixed_advantages
from system.recipe.model import RunConfig


@dataclass
class Experience:
    """One step's tasks in task order, generated and scored."""

    generated: list[Generated]
    scores: list[Scores]
    rewards: list[np.ndarray]
    """(M,) combined reward of the leaves of each task; NaN is a hole."""
    advantages: Advantages
    flat_groups: dict[str, float]
    """The share of groups in which a scorer gives all the same score, by training scorer."""
    behaviour: int
    """The policy version that generated it."""
    peak_bytes: int
    """The most bytes of images in flight at once since the step before."""
    pictures: pa.Table | None = None
    """The images that the run keeps (pictures.py); None if it keeps none of this step."""

    @property
    def cost(self) -> Cost:
        return sum((task.cost for task in self.generated), Cost())

    @property
    def num_scores(self) -> int:
        return sum(len(values) for score in self.scores for values in score.by_scorer.values())

    @property
    def scoring_s(self) -> float:
        """Seconds of work of the reward models."""
        return sum(seconds for score in self.scores for seconds in score.busy_s.values())


def experience_of(
    config: RunConfig, generated: Sequence[Generated], scores: Sequence[Scores], behaviour: int, peak_bytes: int
) -> Experience:
    """Combine the scores of a step into rewards and advantages as the recipe says.

    Raises:
        UserError: more holes than `reward.max_hole_share`.
    """
    rewards = [score.combined(config.weights) for score in scores]
    _refuse_holes(rewards, scores, config.reward.max_hole_share)
    together, flat_groups = advantages_of(config, [task.tree for task in generated], scores, rewards)
    return Experience(list(generated), list(scores), rewards, together, flat_groups, behaviour, peak_bytes)


def advantages_of(
    config: RunConfig, trees: Sequence[Tree], scores: Sequence[Scores], rewards: Sequence[np.ndarray]
) -> tuple[Advantages, dict[str, float]]:
    """The advantages of a training step, and the share of flat groups of each training scorer.

    Args:
        rewards: the combined scores of each task.
    """
    rule = config.advantage
    together = advantages(rule, trees, rewards)
    unpruned = rule.model_copy(update={"keep": None})
    alone = {name: advantages(unpruned, trees, [score.by_scorer[name] for score in scores]) for name in config.weights}
    if config.reward.combine == "group_norm":
        together = mixed_advantages(rule, trees, together, config.weights, alone)
    return together, {name: single.flat_groups for name, single in alone.items()}


def _refuse_holes(rewards: Sequence[np.ndarray], scores: Sequence[Scores], most: float) -> None:
    holes = np.isnan(np.concatenate(rewards))
    if holes.mean() > most:
        raise UserError(
            f"{holes.sum()} of {len(holes)} images have no reward ({why_holes(scores)}); fix the cause, or raise "
            "reward.max_hole_share"
        )
