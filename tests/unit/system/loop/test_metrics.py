"""The spread of siblings' rewards, against figures by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from actors.trajectory import Tree
from system.loop.metrics import branch_std


def experience(*tasks: tuple[list[int], list[list[float]]]) -> SimpleNamespace:
    """Tasks whose decisions are at these steps, with one leaf for each action and these rewards (N, K)."""
    generated, rewards = [], []
    for steps, reward_NK in tasks:
        reward_NK = np.array(reward_NK)
        count, width = reward_NK.shape
        leaf_NKL = np.arange(count * width).reshape(count, width, 1)
        tree = Tree(np.array(steps), np.zeros(count, np.int64), leaf_NKL, count * width)
        generated.append(SimpleNamespace(tree=tree))
        rewards.append(reward_NK.reshape(-1))
    return SimpleNamespace(generated=generated, rewards=rewards)


def test_siblings_are_compared_within_a_decision_and_decisions_of_all_tasks_are_averaged():
    first = ([0, 0, 2], [[0, 2], [0, 4], [1, 1]])
    second = ([0], [[5, 11]])
    np.testing.assert_allclose(branch_std(4, experience(first, second)), [(1 + 2 + 3) / 3, np.nan, 0, np.nan])


def test_chains_are_compared_over_the_seeds_of_a_task():
    task = ([0, 1, 0, 1], [[1], [5], [3], [5]])
    np.testing.assert_allclose(branch_std(2, experience(task)), [1, 0])


def test_holes_are_left_out_and_a_group_of_holes_is_none():
    task = ([0, 0, 1], [[0, np.nan, 4], [np.nan, np.nan, np.nan], [np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(branch_std(2, experience(task)), [2, np.nan])


def test_a_step_without_decisions_has_no_spread():
    assert branch_std(2, experience()) == pytest.approx([np.nan, np.nan], nan_ok=True)
