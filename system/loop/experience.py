"""The experience of one training step: what was generated, its scores and its advantages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actors.reward.counted import counted
from actors.reward.scores import Scores, why_holes
from actors.rollout.results import Generated
from actors.trajectory import Cost
from services.base.errors import UserError
from system.loop.advantage import Advantages
from system.loop.combine import Combined, combine
from system.recipe.model import RunConfig


@dataclass
class Experience:
    """One step's tasks in task order, generated and scored."""

    generated: list[Generated]
    scores: list[Scores]
    rewards: list[np.ndarray]
    """(M,) combined reward of the leaves of each task; NaN is a hole."""
    combined: Combined
    behaviour: int
    """The policy version that generated it."""
    peak_bytes: int
    """The most bytes of images in flight at once since the step before."""
    pictures: pa.Table | None = None
    """The images of this step that the run keeps (pictures.py); None if it keeps none."""

    @property
    def advantages(self) -> Advantages:
        return self.combined.advantages

    @property
    def cost(self) -> Cost:
        return sum((task.cost for task in self.generated), Cost())

    @property
    def num_scores(self) -> int:
        return sum(len(values) for score in self.scores for values in score.by_scorer.values())

    @property
    def scoring_s(self) -> float:
        """Seconds for which the reward models worked."""
        return sum(seconds for score in self.scores for seconds in score.busy_s.values())


def experience_of(
    config: RunConfig,
    generated: Sequence[Generated],
    scores: Sequence[Scores],
    categories: Sequence[str | None],
    behaviour: int,
    peak_bytes: int,
) -> Experience:
    """Combine the scores of a step into rewards and advantages as the recipe says.

    Args:
        categories: the category of each task's prompt.

    Raises:
        UserError: more holes than `reward.max_hole_share`.
    """
    tasks = [counted(config.scorers, *task) for task in zip(scores, categories, strict=True)]
    rewards = [task.reward for task in tasks]
    _refuse_holes(config, rewards, scores)
    combined = combine(config.reward.combine, config.advantage, [task.tree for task in generated], tasks)
    return Experience(list(generated), list(scores), rewards, combined, behaviour, peak_bytes)


def _refuse_holes(config: RunConfig, rewards: Sequence[np.ndarray], scores: Sequence[Scores]) -> None:
    holes = np.isnan(np.concatenate(rewards))
    if holes.mean() <= config.reward.max_hole_share:
        return
    returned = {name for score in scores for name in (*score.by_scorer, *score.sub_scores)}
    gates = [(scorer.name, scorer.gate.score) for scorer in config.reward_scorers if scorer.gate is not None]
    reasons = [
        f"the gate of `{name}` needs `{gate}`, which no scorer returned" for name, gate in gates if gate not in returned
    ]
    reasons.append(why_holes(scores))
    raise UserError(
        f"{holes.sum()} of {len(holes)} images have no reward ({'; '.join(reasons)}); fix the cause, or raise "
        "reward.max_hole_share"
    )
