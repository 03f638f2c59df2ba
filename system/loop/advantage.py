"""Advantage rules: turn the rewards of a training step's actions into one advantage for each. NumPy, float64.

Shape legend: A all actions of a training step, task after task in index order; G groups; N decisions of a task; K
actions of a decision; M leaves of a task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from actors.learner.settings import AdvantageSettings
from actors.trajectory import RewardFunction, Tree
from services.base.errors import UserError


@dataclass(frozen=True)
class Advantages:
    """The advantages of a training step, and how many holes and flat groups there are."""

    by_task: list[np.ndarray]
    """(N, K) for each task; 0 for holes, for groups with no spread and for groups of one."""
    hole_by_task: list[np.ndarray]
    """Whether an action has no reward, (N, K) for each task."""
    flat_groups: float
    """Share of groups whose known rewards do not differ."""

    @property
    def holes(self) -> int:
        """Actions without a reward."""
        return int(sum(hole_NK.sum() for hole_NK in self.hole_by_task))


def group_keys(rule: AdvantageSettings, trees: Sequence[Tree]) -> np.ndarray:
    """The group of each action, (A,). Actions with the same integer are compared with one another.

    A task has one prompt, so the task's index identifies the prompt.
    """
    keys = []
    for task, tree in enumerate(trees):
        columns = {
            "prompt": (),
            "prompt_step": (tree.step_N,),
            "seed": (tree.step_N, tree.seed_N, np.arange(len(tree.step_N))),
        }[rule.group]
        rows_N = np.stack([np.full(len(tree.step_N), task), *columns], axis=1)
        padded_N = np.pad(rows_N, ((0, 0), (0, 4 - rows_N.shape[1])))
        keys.append(np.repeat(padded_N, tree.leaf_NKL.shape[1], axis=0))
    return np.unique(np.concatenate(keys), axis=0, return_inverse=True)[1].reshape(-1)


def normalise(
    reward_A: np.ndarray, group_A: np.ndarray, rule: AdvantageSettings, part_A: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A = (r − mean of the group) / (std + ε), with the population std.

    Args:
        reward_A: NaN marks a hole.
        group_A: integers from 0.
        part_A: one of the summands of the reward. If it is given, its part of the advantages is returned: the summand
            minus its own group mean, divided by the reward's std. The parts of all summands add up to the advantages.

    Returns:
        advantages (A,), 0 for holes and for groups with no spread; whether a group has no spread, (G,). The std does
        not tell: it may be above 0 for equal rewards, because their mean is rounded.
    """
    known_A = ~np.isnan(reward_A)
    groups = int(group_A.max(initial=-1)) + 1
    count_G = np.bincount(group_A[known_A], minlength=groups)
    centred_A = _centred(reward_A, known_A, group_A, count_G)
    with np.errstate(invalid="ignore"):
        std_G = np.sqrt(np.bincount(group_A[known_A], centred_A[known_A] ** 2, groups) / count_G)
    low_G = np.full(groups, np.inf)
    high_G = np.full(groups, -np.inf)
    np.minimum.at(low_G, group_A[known_A], reward_A[known_A])
    np.maximum.at(high_G, group_A[known_A], reward_A[known_A])
    flat_G = high_G <= low_G
    spread_A = known_A & ~flat_G[group_A]
    scale_A = (
        std_G[group_A]
        if rule.std == "group"
        else np.full_like(reward_A, reward_A[known_A].std() if known_A.any() else 0.0)
    )
    if part_A is not None:
        centred_A = _centred(part_A, known_A, group_A, count_G)
    advantage_A = np.zeros_like(reward_A)
    advantage_A[spread_A] = centred_A[spread_A] / (scale_A[spread_A] + rule.epsilon)
    return advantage_A, flat_G


def _centred(reward_A: np.ndarray, known_A: np.ndarray, group_A: np.ndarray, count_G: np.ndarray) -> np.ndarray:
    """The rewards minus the mean of the known rewards of their group, (A,)."""
    with np.errstate(invalid="ignore"):
        mean_G = np.bincount(group_A[known_A], reward_A[known_A], len(count_G)) / count_G
    return reward_A - mean_G[group_A]


def extremes(advantage_A: np.ndarray, group_A: np.ndarray, keep: int) -> np.ndarray:
    """Whether an action is among the `keep` best or the `keep` worst of its group, (A,).

    Of equal advantages, the one with the higher index counts as the better one.
    """
    order_A = np.lexsort((advantage_A, group_A))
    size_G = np.bincount(group_A)
    first_G = np.cumsum(size_G) - size_G
    place_A = np.empty_like(order_A)
    place_A[order_A] = np.arange(len(order_A)) - first_G[group_A[order_A]]
    return (place_A < keep) | (place_A >= size_G[group_A] - keep)


def advantages(rule: AdvantageSettings, trees: Sequence[Tree], reward_by_task: Sequence[np.ndarray]) -> Advantages:
    """The advantages of a training step.

    Args:
        trees: one for each task, in index order.
        reward_by_task: (M,) combined reward of each leaf, NaN for holes.
    """
    group_A = group_keys(rule, trees)
    rewards = _rewards(rule, trees, reward_by_task)
    normalised = [normalise(reward_A, group_A, rule) for reward_A in rewards]
    hole_A: np.ndarray = np.isnan(np.stack(rewards)).any(axis=0)
    advantage_A = np.where(hole_A, 0.0, np.sum([advantage_A for advantage_A, _ in normalised], axis=0))
    flat = [float(np.mean(flat_G)) for _, flat_G in normalised]
    return Advantages(by_task(bounded(advantage_A, group_A, rule), trees), by_task(hole_A, trees), float(np.mean(flat)))


def parts(
    rule: AdvantageSettings,
    trees: Sequence[Tree],
    reward_by_task: Sequence[np.ndarray],
    part_by_task: Sequence[np.ndarray],
) -> np.ndarray:
    """What one summand of the reward adds to each advantage, before it is pruned and clipped, (A,).

    With a function in `advantage.leaves`, the summands' parts need not add up to the advantages.
    """
    group_A = group_keys(rule, trees)
    whole, part = _rewards(rule, trees, reward_by_task), _rewards(rule, trees, part_by_task)
    hole_A: np.ndarray = np.isnan(np.stack([*whole, *part])).any(axis=0)
    sums = [normalise(whole_A, group_A, rule, part_A)[0] for whole_A, part_A in zip(whole, part, strict=True)]
    return np.where(hole_A, 0.0, np.sum(sums, axis=0))


def _rewards(rule: AdvantageSettings, trees: Sequence[Tree], reward_by_task: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The reward of each action, (A,), for each comparison. The advantages of all comparisons are added.

    Raises:
        UserError: the recipe's own function gives something else than one reward for each action, or an infinite one.
    """
    tasks = list(zip(trees, reward_by_task, strict=True))
    return [
        np.concatenate([_checked(rule, tree, reward_of(tree, reward_M)).ravel() for tree, reward_M in tasks])
        for reward_of in _reward_functions(rule, trees)
    ]


def _checked(rule: AdvantageSettings, tree: Tree, reward_NK: np.ndarray) -> np.ndarray:
    if np.shape(reward_NK) != (shape := tree.leaf_NKL.shape[:2]):
        raise UserError(
            f"advantage.leaves: {rule.leaves} gave an array of shape {np.shape(reward_NK)} for a task; return one "
            f"reward for each action, {shape}"
        )
    finite_or_hole_NK = np.asarray(reward_NK, np.float64)
    if np.isinf(finite_or_hole_NK).any():
        raise UserError(
            f"advantage.leaves: {rule.leaves} gave an infinite reward; return numbers, or NaN where there is none"
        )
    return finite_or_hole_NK


def _reward_functions(rule: AdvantageSettings, trees: Sequence[Tree]) -> list[RewardFunction]:
    """For each comparison, the function that gives the rewards of a task's actions.

    There are several comparisons if first leaves are compared with first leaves, second ones with second ones, etc.
    """
    if rule.leaves == "each":
        leaves = range(max(tree.leaf_NKL.shape[2] for tree in trees))
        return [partial(Tree.reduce, leaf=leaf) for leaf in leaves]
    return [rule.reward_function or Tree.reduce]


def bounded(advantage_A: np.ndarray, group_A: np.ndarray, rule: AdvantageSettings) -> np.ndarray:
    """The advantages after pruning (`keep`) and clipping (`clip`)."""
    if rule.keep:
        advantage_A = np.where(extremes(advantage_A, group_A, rule.keep), advantage_A, 0.0)
    return advantage_A.clip(-rule.clip, rule.clip)


def by_task(values_A: np.ndarray, trees: Sequence[Tree]) -> list[np.ndarray]:
    """Split the values of all actions into an array (N, K) for each task."""
    shapes = [tree.leaf_NKL.shape[:2] for tree in trees]
    ends = np.cumsum([n * k for n, k in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(values_A, ends), shapes, strict=True)]
