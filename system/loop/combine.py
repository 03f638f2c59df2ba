"""The rules of `reward.combine`: turn the scores of a training step into one advantage for each action.

The order of operations: each score is clipped, gated and scaled (`actors.reward.counted`); then

- `raw` weighs the scores, adds them, and normalises the sum in its groups;
- `group_norm` normalises each scorer's scores in their groups, weighs them, and adds them, as MixGRPO does (arXiv
  2507.21802). A scorer of a large scale cannot drown the others, and scorers that disagree give small advantages;
- `gdpo` does as `group_norm`, and then normalises the sums over the step, as GDPO does (arXiv 2601.05242):
  A / (std of the step's A + ε). The advantages are as large with ten scorers as with two.

Every rule prunes and clips (`advantage.keep`, `advantage.clip`) at the end; the last two clip each scorer's own
advantages before they are added, too. A hole of any scorer with a weight is a hole of the action: its advantage is 0,
and no rule counts it. A scorer's scores are normalised over all that it gave, also where another scorer has a hole.

Deviations from GDPO: the std over the step is that around 0, of the actions that have a reward. Their mean is 0 where
no score is missing, since it is 0 in each group; where some are, subtracting the mean would give groups without spread
an advantage. Stds are those of the population; the paper's code divides by n − 1. It also turns a missing score into 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.learner.settings import AdvantageSettings
from actors.reward.counted import Counted
from actors.reward.settings import CombineRule
from actors.trajectory import Tree
from system.loop.advantage import Advantages, advantages, bounded, by_task, group_keys, parts


@dataclass(frozen=True)
class Combined:
    """The advantages of a step, and how much each scorer contributes to them."""

    advantages: Advantages
    flat_groups: dict[str, float]
    """For each scorer with a weight, the share of groups in which it gives all actions the same score."""
    shares: dict[str, float]
    """Each scorer's share of the advantages: mean |its summand|, divided by the sum of this over all scorers. NaN if
    all advantages are 0."""


def combine(
    combine_rule: CombineRule, rule: AdvantageSettings, trees: Sequence[Tree], tasks: Sequence[Counted]
) -> Combined:
    """The advantages of a training step.

    Args:
        trees: one for each task, in index order.
        tasks: the scores of each task. Tasks may have different scorers.
    """
    names = list(dict.fromkeys(name for task in tasks for name in task.weights))
    rewards = [task.reward for task in tasks]
    together = advantages(rule, trees, rewards)
    alone = {name: _alone(rule, trees, tasks, name) for name in names}
    if combine_rule == "raw":
        summands = {name: parts(rule, trees, rewards, _weighted(tasks, name)) for name in names}
    else:
        known_A = ~np.concatenate([hole_NK.ravel() for hole_NK in together.hole_by_task])
        summands = {name: np.where(known_A, alone[name].weighted_A, 0.0) for name in names}
        sum_A = np.sum(list(summands.values()), axis=0)
        if combine_rule == "gdpo" and known_A.any():
            sum_A = sum_A / (np.sqrt(np.mean(sum_A[known_A] ** 2)) + rule.epsilon)
        together = replace(together, by_task=by_task(bounded(sum_A, group_keys(rule, trees), rule), trees))
    return Combined(together, {name: alone[name].flat_groups for name in names}, _shares(summands))


@dataclass(frozen=True)
class _Alone:
    """One scorer by itself."""

    weighted_A: np.ndarray
    """Its weighted advantages before pruning, (A,); 0 in tasks in which it has no weight."""
    flat_groups: float


def _alone(rule: AdvantageSettings, trees: Sequence[Tree], tasks: Sequence[Counted], name: str) -> _Alone:
    its = [i for i, task in enumerate(tasks) if name in task.weights]
    unpruned = rule.model_copy(update={"keep": None})
    found = advantages(unpruned, [trees[i] for i in its], [tasks[i].scores[name] for i in its])
    weighted = [np.zeros(tree.leaf_NKL.shape[:2]) for tree in trees]
    for i, advantage_NK in zip(its, found.by_task, strict=True):
        weighted[i] = tasks[i].weights[name] * advantage_NK
    return _Alone(np.concatenate([advantage_NK.ravel() for advantage_NK in weighted]), found.flat_groups)


def _weighted(tasks: Sequence[Counted], name: str) -> list[np.ndarray]:
    """The weighted scores of a scorer, (M,) for each task; 0 where it has no weight."""
    return [
        task.weights[name] * task.scores[name] if name in task.weights else np.zeros_like(task.reward) for task in tasks
    ]


def _shares(summands: dict[str, np.ndarray]) -> dict[str, float]:
    sizes = {name: float(np.abs(summand_A).mean()) for name, summand_A in summands.items()}
    total = sum(sizes.values())
    return {name: size / total if total else math.nan for name, size in sizes.items()}
