"""TP-GRPO: the images that its plan makes, and its rewards against values worked out by hand."""

import numpy as np
import pytest
import torch

from actors.learner.settings import AdvantageSettings
from actors.methods import find_method
from actors.methods.tp_grpo import turning_point_rewards
from actors.policy.kernels import make_kernel
from actors.policy.policy import Policy
from actors.policy.solvers import euler
from actors.rollout.plans import make_plan
from actors.rollout.sampler import Sampler
from actors.trajectory import Tree
from services.base.errors import UserError
from system.loop.advantage import advantages
from system.recipe.load import load_config
from tests.helpers.actions import actions_of
from tests.helpers.chains import tree_of
from tests.helpers.tiny import tiny_settings

METHOD = find_method("tp_grpo")
SEEDS, STEPS = 3, 4


def rewards_of(*curves) -> np.ndarray:
    """(seed, step) rewards of actions from one curve a trajectory: R_0, R_1, …, R."""
    steps = len(curves[0]) - 1
    rewards = turning_point_rewards(tree_of(len(curves), steps), np.array(curves, float).T.ravel())
    assert rewards.shape == (len(curves) * steps, 1)
    return rewards.reshape(steps, len(curves)).T


@pytest.mark.parametrize(
    ("curve", "expected", "why"),
    [
        ([0, 1, 3, 6], [6, 2, 3], "rises throughout: the first step begins the trend, the others continue it"),
        ([0, -2, 1, 4], [-2, 6, 3], "step 1 turns the fall into a rise that lasts"),
        ([0, -2, 5, 4], [-2, 7, -1], "step 1 rises against what follows: its own gain"),
        ([0, 2, -1, -4], [2, -6, -3], "step 1 turns a rise into a fall that lasts"),
        ([0, 1, 0.5, 2], [2, -0.5, 1.5], "the last step has nothing that follows"),
        ([0, 0, 1, 3], [0, 1, 2], "a tie has no sign: step 1 follows no fall"),
        ([0, -1, 1, 0], [-1, 2, -1], "no change on the whole: no trend to agree with"),
    ],
)
def test_a_gain_becomes_the_long_term_change_at_a_turning_point(curve, expected, why):
    assert rewards_of(curve)[0].tolist() == expected, why


def test_turning_points_up_and_down_are_balanced_by_their_largest_changes():
    up, more, down = [0, 1, 3], [0, 2, 5], [0, -1, -2]
    alone = rewards_of(up, more)
    np.testing.assert_array_equal(alone[:, 0], [3, 5])
    together = rewards_of(up, more, down)
    np.testing.assert_array_equal(together[:, 0], [1, 5, -2])
    np.testing.assert_array_equal(together[:, 1], [2, 3, -1])


def test_a_missing_reward_is_a_hole_where_it_is_needed_and_nowhere_else():
    hole = rewards_of([0, 1, np.nan, 6, 7], [0, 1, 3, 6, 7])
    assert np.isnan(hole[0]).tolist() == [False, True, True, True]
    assert hole[0, 0] == 7, "all that the first step needs is known"
    assert hole[1].tolist() == [7, 2, 3, 1]
    assert np.isnan(rewards_of([0, 1, 2, np.nan])[0]).all(), "the whole change decides at every step"


def test_rewards_do_not_depend_on_the_order_of_decisions():
    rng = np.random.default_rng(0)
    tree, reward_M = tree_of(SEEDS, STEPS), rng.normal(size=SEEDS * (STEPS + 1))
    order = rng.permutation(SEEDS * STEPS)
    mixed = Tree(tree.step_N[order], tree.seed_N[order], tree.leaf_NKL[order], tree.num_leaves)
    expected = turning_point_rewards(tree, reward_M)[order]
    np.testing.assert_array_equal(turning_point_rewards(mixed, reward_M), expected)


def test_advantages_are_normalised_over_the_trajectories_of_a_step():
    reward_M = np.random.default_rng(1).normal(size=SEEDS * (STEPS + 1))
    tree = tree_of(SEEDS, STEPS)
    found = advantages(METHOD.advantage, [tree], [reward_M]).by_task[0].reshape(STEPS, SEEDS)
    rewards = turning_point_rewards(tree, reward_M).reshape(STEPS, SEEDS)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, centred / (rewards.std(axis=1, keepdims=True) + 1e-4))


@pytest.mark.parametrize("shared_noise", [False, True])
@torch.no_grad()
def test_the_sampler_completes_every_state_and_gives_each_action_its_images(sd3_folder, shared_noise):
    """Against one trajectory at a time: an action's leaves are its baseline, those of later states, the final image."""
    policy = Policy(tiny_settings(sd3_folder, num_steps=STEPS + 1), seed=0)
    changes = {"seeds": SEEDS, "size": STEPS, "shared_noise": shared_noise}
    plan = make_plan(METHOD.plan.model_copy(update=changes), STEPS + 1)
    conditioning = policy.family.encode(["a cat"])
    sampler = Sampler(policy.family, policy.sigmas, make_kernel(METHOD.kernel, policy.sigmas), 8)
    front = sampler(plan, [(0, 0, 0, b) for b in range(plan.seeds)], [0] * plan.seeds, conditioning)

    def completed(x, i):
        for j in range(i, STEPS + 1):
            x = euler(x, policy.family.velocity(x, policy.sigmas[j].expand(1), conditioning), *policy.sigmas[j : j + 2])
        return x

    tree, decisions = front.tree, front.decisions
    action_NKZ = actions_of(decisions, sampler.kernel)
    assert (front.cost.nfe, len(front.leaf_MZ)) == (plan.nfe, plan.leaves)
    assert len(tree.step_N) == SEEDS * STEPS
    states = dict(zip(map(int, tree.leaf_NKL[:, 0, 0]), zip(tree.step_N, decisions.state_NZ, strict=True), strict=True))
    assert len(states) == SEEDS * STEPS - (SEEDS - 1) * shared_noise, "a shared state has one baseline"
    for n, step in enumerate(tree.step_N):
        owned = tree.leaf_NKL[n, 0][tree.leaf_NKL[n, 0] >= 0]
        assert len(owned) == STEPS + 1 - step
        before = completed(torch.from_numpy(decisions.state_NZ[n : n + 1]), int(step))
        torch.testing.assert_close(front.leaf_MZ[owned[:1]], before, rtol=0, atol=1e-5)
        after = completed(torch.from_numpy(action_NKZ[n]), int(step) + 1)
        torch.testing.assert_close(front.leaf_MZ[owned[1:2]], after, rtol=0, atol=1e-5)
        assert [states[int(m)][0] for m in owned[:-1]] == list(range(int(step), STEPS))
    finals = [int(owned[owned >= 0][-1]) for owned in tree.leaf_NKL[:, 0]]
    assert sorted(finals) == sorted(list(range(plan.leaves - SEEDS, plan.leaves)) * STEPS)


def test_the_published_plan_costs_what_the_method_says():
    plan = make_plan(METHOD.plan, 10)
    assert plan.trained_steps == list(range(9))
    assert (plan.nfe, plan.leaves, plan.decisions) == (240 + 1080, 240, 216)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["plan.baselines=false"], "turning_point_rewards reads baselines; set plan.baselines to true"),
        (
            ["advantage.leaves=mean"],
            "advantage.leaves: mean does not tell baselines from .* set plan.baselines to false, or",
        ),
        (["advantage.leaves=some"], "it is `mean`, `each` or the path of a function"),
        (["advantage.leaves=nowhere.at:all"], "advantage.leaves: nowhere.at:all: No module named 'nowhere'"),
        (["advantage.leaves=json:none"], "has no attribute 'none'; check the import path"),
        (["objective.noise_weights=true"], "objective.noise_weights: the gradient of the CPS"),
    ],
)
def test_what_has_no_gains_is_refused(overrides, says):
    with pytest.raises(UserError, match=says):
        load_config("shapes_tp_grpo", overrides)


def test_a_function_of_the_users_own_gives_the_rewards():
    rule = AdvantageSettings(group="prompt_step", leaves=f"{__name__}:last_alone")
    tree = tree_of(2, 2)
    found = advantages(rule, [tree], [np.array([9.0, 9, 9, 9, 1, 3])]).by_task[0].reshape(2, 2)
    np.testing.assert_allclose(found, [[-1 / 1.0001, 1 / 1.0001]] * 2)


def last_alone(tree, reward_M):
    return reward_M[tree.leaf_NKL.max(axis=2)]
