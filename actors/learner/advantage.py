"""Advantage rules: from the rewards of a step's actions to one advantage an action. NumPy, float64.

Shape legend: A all actions of a training step, task after task in index order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.learner.settings import AdvantageSettings
from actors.trajectory import Tree


@dataclass(frozen=True)
class Advantages:
    """Advantages by task, and how the groups fared."""

    by_task: list[np.ndarray]
    """(N, K) for each task; 0 for holes, for groups with no spread and for groups of one."""
    holes: int
    """Actions without a reward."""
    flat_groups: float
    """Share of groups whose known rewards do not differ."""


def group_keys(rule: AdvantageSettings, trees: Sequence[Tree]) -> np.ndarray:
    """The group of each action, (A,): integers, equal where two actions are compared.

    A task holds one prompt, so the task's index stands for it.
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


def normalise(reward_A: np.ndarray, group_A: np.ndarray, rule: AdvantageSettings) -> tuple[np.ndarray, np.ndarray]:
    """A = clip((r − mean of the group) / (std + ε)), and each group's population std.

    Args:
        reward_A: NaN marks a hole.
        group_A: integers from 0.

    Returns:
        advantages (A,), 0 for holes and for groups with no spread; std of each group, NaN where it has no reward.
    """
    known_A = ~np.isnan(reward_A)
    groups = int(group_A.max(initial=-1)) + 1
    count_G = np.bincount(group_A[known_A], minlength=groups)
    with np.errstate(invalid="ignore"):
        mean_G = np.bincount(group_A[known_A], reward_A[known_A], groups) / count_G
        centred_A = reward_A - mean_G[group_A]
        std_G = np.sqrt(np.bincount(group_A[known_A], centred_A[known_A] ** 2, groups) / count_G)
    low_G = np.full(groups, np.inf)
    high_G = np.full(groups, -np.inf)
    np.minimum.at(low_G, group_A[known_A], reward_A[known_A])
    np.maximum.at(high_G, group_A[known_A], reward_A[known_A])
    spread_A = known_A & (high_G > low_G)[group_A]
    scale_A = (
        std_G[group_A]
        if rule.std == "group"
        else np.full_like(reward_A, reward_A[known_A].std() if known_A.any() else 0.0)
    )
    advantage_A = np.zeros_like(reward_A)
    advantage_A[spread_A] = centred_A[spread_A] / (scale_A[spread_A] + rule.epsilon)
    return advantage_A.clip(-rule.clip, rule.clip), std_G


def advantages(rule: AdvantageSettings, trees: Sequence[Tree], reward_by_task: Sequence[np.ndarray]) -> Advantages:
    """Advantages of a training step.

    Args:
        trees: one a task, in index order.
        reward_by_task: (M,) combined reward of each leaf, NaN for holes.
    """
    action_NK = [tree.reduce(reward_M) for tree, reward_M in zip(trees, reward_by_task, strict=True)]
    reward_A = np.concatenate([reward.reshape(-1) for reward in action_NK])
    advantage_A, std_G = normalise(reward_A, group_keys(rule, trees), rule)
    ends = np.cumsum([reward.size for reward in action_NK])[:-1]
    by_task = [part.reshape(reward.shape) for part, reward in zip(np.split(advantage_A, ends), action_NK, strict=True)]
    return Advantages(by_task, int(np.isnan(reward_A).sum()), float(np.mean(~(std_G > 0))))


def mixed_advantages(
    rule: AdvantageSettings, trees: Sequence[Tree], scores: Sequence[tuple[float, Sequence[np.ndarray]]]
) -> Advantages:
    """Advantages of each scorer by itself, then their weighted sum, as MixGRPO combines rewards (arXiv 2507.21802).

    A scorer of a large scale cannot drown the others, and scorers that disagree give small advantages.

    Args:
        scores: (weight, (M,) scores of each task's leaves) of each scorer; NaN for holes.
    """
    combined = [np.sum([weight * leaves[i] for weight, leaves in scores], axis=0) for i in range(len(trees))]
    whole = advantages(rule, trees, combined)
    parts = [(weight, advantages(rule, trees, leaves).by_task) for weight, leaves in scores]
    by_task = []
    for i, (tree, reward_M) in enumerate(zip(trees, combined, strict=True)):
        sum_NK = np.sum([weight * part[i] for weight, part in parts], axis=0)
        by_task.append(np.where(np.isnan(tree.reduce(reward_M)), 0.0, sum_NK).clip(-rule.clip, rule.clip))
    return Advantages(by_task, whole.holes, whole.flat_groups)
