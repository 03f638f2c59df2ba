"""Advantage rules against values worked out by hand."""

import numpy as np
import pytest

from actors.learner.settings import AdvantageSettings
from actors.trajectory import Tree
from services.base.errors import UserError
from system.loop.advantage import advantages, group_keys, normalise, parts
from system.recipe.load import load_config


def trunk_tree(steps: int, seeds: int, width: int) -> Tree:
    n = steps * seeds
    return Tree(
        np.repeat(np.arange(steps), seeds),
        np.tile(np.arange(seeds), steps),
        np.arange(n * width).reshape(n, width, 1),
        n * width,
    )


def test_siblings_are_compared_with_siblings():
    tree = trunk_tree(1, 2, 3)
    result = advantages(AdvantageSettings(), [tree], [np.array([1.0, 2.0, 3.0, 10.0, 10.0, 40.0])])
    std = np.sqrt(2 / 3)
    assert result.by_task[0][0].tolist() == pytest.approx([-1 / (std + 1e-4), 0, 1 / (std + 1e-4)])
    std = np.sqrt(200)
    assert result.by_task[0][1].tolist() == pytest.approx([-10 / (std + 1e-4), -10 / (std + 1e-4), 20 / (std + 1e-4)])


def test_prompt_step_group_spans_the_seeds_of_a_step_but_not_steps_or_tasks():
    tree = trunk_tree(2, 2, 2)
    rewards = [np.arange(8.0), np.arange(8.0) * 100]
    result = advantages(AdvantageSettings(group="prompt_step"), [tree, tree], rewards)
    centred = np.array([[-1.5, -0.5], [0.5, 1.5]]) / (np.std([0, 1, 2, 3]) + 1e-4)
    for rows in (slice(0, 2), slice(2, 4)):
        np.testing.assert_allclose(result.by_task[0][rows], centred)
    np.testing.assert_allclose(result.by_task[1], result.by_task[0], rtol=1e-3)


def test_flow_grpo_takes_the_groups_mean_and_the_batch_std():
    chain = Tree(np.repeat([0, 1], 3), np.tile([0, 1, 2], 2), np.tile([[[0]], [[1]], [[2]]], (2, 1, 1)), 3)
    rewards = [np.array([0.0, 1.0, 2.0]), np.array([10.0, 10.0, 16.0])]
    result = advantages(AdvantageSettings(group="prompt", std="batch"), [chain, chain], rewards)
    scale = np.std([0, 1, 2, 10, 10, 16]) + 1e-4
    np.testing.assert_allclose(result.by_task[0][:, 0], np.tile([-1, 0, 1], 2) / scale)
    np.testing.assert_allclose(result.by_task[1][:, 0], np.tile([-2, -2, 4], 2) / scale)


def test_ties_and_groups_of_one_get_zero_exactly():
    for tied in (0.1 + 0.2, 0.1):  # The mean of three times 0.1 is another number than 0.1.
        result = advantages(AdvantageSettings(), [trunk_tree(1, 2, 3)], [np.full(6, tied)])
        assert (result.by_task[0] == 0).all()
        assert result.flat_groups == 1
    alone, _ = normalise(np.array([5.0]), np.array([0]), AdvantageSettings())
    assert alone.tolist() == [0]


def test_holes_get_zero_and_leave_their_siblings_alone():
    rewards = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan])
    result = advantages(AdvantageSettings(), [trunk_tree(1, 2, 3)], [rewards])
    assert result.by_task[0][0].tolist() == pytest.approx([-1 / 1.0001, 0, 1 / 1.0001])
    assert result.by_task[0][1].tolist() == [0, 0, 0]
    assert result.holes == 4
    assert result.flat_groups == 0.5


def test_advantages_are_clipped():
    rewards = np.zeros(100)
    rewards[0] = 1.0
    tree = trunk_tree(1, 1, 100)
    unclipped, _ = normalise(rewards, np.zeros(100, int), AdvantageSettings())
    assert unclipped[0] > 9
    assert advantages(AdvantageSettings(), [tree], [rewards]).by_task[0][0, 0] == 5.0


def test_leaves_of_each_granularity_are_compared_apart_and_added():
    """Two actions with two leaves each, as G²RPO sums its granularities; clipped after the sum."""
    tree = Tree(np.array([0]), np.array([0]), np.arange(6).reshape(1, 3, 2), 6)
    first, second = np.array([1.0, 2.0, 6.0]), np.array([30.0, 10.0, 20.0])
    rewards = np.stack([first, second], 1).ravel()
    rule = AdvantageSettings(leaves="each", epsilon=1e-8)
    expected = sum((r - r.mean()) / (r.std() + 1e-8) for r in (first, second))
    np.testing.assert_allclose(advantages(rule, [tree], [rewards]).by_task[0][0], expected)
    hole = rewards.copy()
    hole[3] = np.nan
    result = advantages(rule, [tree], [hole])
    assert result.by_task[0][0, 1] == 0
    assert result.holes == 1
    clipped = advantages(AdvantageSettings(leaves="each", clip=0.5), [tree], [rewards]).by_task[0]
    assert np.abs(clipped).max() == 0.5


def test_width_pruning_keeps_the_best_and_the_worst_of_a_group():
    tree = trunk_tree(1, 2, 5)
    rewards = np.array([3.0, 1.0, 2.0, 5.0, 4.0, 10.0, 10.0, 10.0, 0.0, 20.0])
    full = advantages(AdvantageSettings(), [tree], [rewards]).by_task[0]
    kept = advantages(AdvantageSettings(keep=1), [tree], [rewards]).by_task[0]
    assert np.flatnonzero(kept[0]).tolist() == [1, 3]
    assert np.flatnonzero(kept[1]).tolist() == [3, 4]
    np.testing.assert_array_equal(kept[kept != 0], full[kept != 0])
    np.testing.assert_array_equal(advantages(AdvantageSettings(keep=3), [tree], [rewards]).by_task[0], full)


def test_a_leaf_shared_by_several_actions_counts_for_each_and_a_trees_action_takes_its_mean():
    tree = Tree(
        np.array([0, 1, 1]), np.zeros(3, int), np.array([[[0, 1], [2, 3]], [[0, -1], [1, -1]], [[2, -1], [3, -1]]]), 4
    )
    reward = tree.reduce(np.array([1.0, 3.0, 5.0, 9.0]))
    assert reward.tolist() == [[2, 7], [1, 3], [5, 9]]


def test_seed_groups_of_a_tree_are_its_states():
    tree = Tree(np.array([0, 1, 1]), np.zeros(3, int), np.zeros((3, 2, 1), int), 1)
    assert group_keys(AdvantageSettings(), [tree]).tolist() == [0, 0, 1, 1, 2, 2]
    assert group_keys(AdvantageSettings(group="prompt_step"), [tree]).tolist() == [0, 0, 1, 1, 1, 1]
    assert group_keys(AdvantageSettings(group="prompt"), [tree, tree]).tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("leaves", ["mean", "each"])
@pytest.mark.parametrize("std", ["group", "batch"])
def test_the_parts_of_the_summands_add_up_to_the_advantages(leaves, std):
    tree, rng = Tree(np.array([0, 1]), np.zeros(2, int), np.arange(12).reshape(2, 3, 2), 12), np.random.default_rng(0)
    rule, one, other = AdvantageSettings(leaves=leaves, std=std), rng.random(12), 100 * rng.random(12)
    one[4] = np.nan
    sums = sum(parts(rule, [tree], [one + other], [part]) for part in (one, other))
    np.testing.assert_allclose(sums, advantages(rule, [tree], [one + other]).by_task[0].ravel(), atol=1e-12)
    assert sums[2] == 0


def ranks(tree, reward_M):
    """The rank of each action among its siblings, as whole numbers."""
    return tree.reduce(reward_M).argsort(axis=1).argsort(axis=1)


def one_per_decision(tree, reward_M):
    return tree.reduce(reward_M)[:, 0]


def test_a_function_gives_credit_on_a_trunk():
    rule = load_config("shapes", [f"advantage.leaves={__name__}:ranks"]).advantage
    result = advantages(rule, [trunk_tree(1, 2, 3)], [np.array([1.0, 2.0, 900.0, 7.0, 6.0, 5.0])])
    rank = np.array([-1.0, 0.0, 1.0]) / (np.sqrt(2 / 3) + rule.epsilon)
    np.testing.assert_allclose(result.by_task[0], [rank, -rank])


def test_a_function_that_gives_another_shape_is_named():
    rule = AdvantageSettings(leaves=f"{__name__}:one_per_decision")
    says = (
        r"advantage.leaves: .*:one_per_decision gave an array of shape \(2,\) .* one reward for each action, \(2, 3\)"
    )
    with pytest.raises(UserError, match=says):
        advantages(rule, [trunk_tree(1, 2, 3)], [np.arange(6.0)])


def inverse(tree, reward_M):
    with np.errstate(divide="ignore"):
        return 1 / tree.reduce(reward_M)


def test_a_function_that_gives_an_infinite_reward_is_named():
    rule = AdvantageSettings(leaves=f"{__name__}:inverse")
    trees = [trunk_tree(1, 2, 3)]
    assert advantages(rule, trees, [np.array([1.0, 2, 3, 4, 5, np.nan])]).holes == 1
    with pytest.raises(
        UserError, match=r"advantage.leaves: .*:inverse gave an infinite reward; return numbers, or NaN"
    ):
        advantages(rule, trees, [np.arange(6.0)])
