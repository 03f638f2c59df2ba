"""DenseGRPO: its rewards and advantages against values worked out by hand, and its cost."""

import numpy as np
import pytest

from actors.methods import find_method
from actors.rollout.plans import make_plan
from actors.trajectory import Tree, gains
from services.base.errors import UserError
from system.loop.advantage import advantages
from system.recipe.load import load_config
from tests.helpers.chains import tree_of

METHOD = find_method("dense_grpo")
CURVES = np.array([[1.0, 4.0, 2.0, 2.5], [1.0, 0.0, 5.0, 5.0]])
"""(seed, state) R_0, R_1, R_2 and the reward of the final image, of two trajectories with three decisions."""
GAINS = [[3.0, -2.0, 0.5], [-1.0, 5.0, 0.0]]


def gains_of(curves: np.ndarray) -> np.ndarray:
    """(seed, step) gains."""
    seeds, states = curves.shape
    return gains(tree_of(seeds, states - 1), curves.T.ravel()).reshape(states - 1, seeds).T


def test_an_action_gets_what_its_step_changed():
    assert gains_of(CURVES).tolist() == GAINS
    np.testing.assert_allclose(gains_of(CURVES).sum(axis=1), CURVES[:, -1] - CURVES[:, 0])


def test_a_missing_reward_is_a_hole_in_the_two_gains_that_need_it():
    curves = CURVES.copy()
    curves[0, 1] = np.nan
    assert np.isnan(gains_of(curves)).tolist() == [[True, True, False], [False, False, False]]


def test_gains_do_not_depend_on_the_order_of_decisions():
    tree, reward_M, order = tree_of(2, 3), CURVES.T.ravel(), np.array([4, 0, 5, 2, 1, 3])
    mixed = Tree(tree.step_N[order], tree.seed_N[order], tree.leaf_NKL[order], tree.num_leaves)
    assert gains(mixed, reward_M).tolist() == gains(tree, reward_M)[order].tolist()


@pytest.mark.parametrize("name", ["dense_grpo", "stepwise"])
def test_advantages_compare_the_gains_of_one_step(name):
    """Of two gains, the larger one is half their distance above the mean, which is also their standard deviation."""
    found = advantages(find_method(name).advantage, [tree_of(2, 3)], [CURVES.T.ravel()]).by_task[0].reshape(3, 2).T
    half = np.array([2.0, 3.5, 0.25])
    unit = half / (half + 1e-4)
    np.testing.assert_allclose(found, [unit * [1, -1, 1], unit * [-1, 1, -1]])


def test_the_plan_costs_what_the_method_says():
    plan = make_plan(METHOD.plan, 10)
    assert plan.trained_steps == list(range(9))
    assert (plan.nfe, plan.leaves, plan.decisions) == (24 * 10 + 24 * sum(range(1, 10)), 240, 216) == (1320, 240, 216)


@pytest.mark.parametrize("recipe", ["shapes_dense_grpo", "shapes_stepwise"])
def test_gains_without_baselines_are_refused(recipe):
    with pytest.raises(UserError, match=r"gains reads baselines; set plan\.baselines to true"):
        load_config(recipe, ["plan.baselines=false"])
