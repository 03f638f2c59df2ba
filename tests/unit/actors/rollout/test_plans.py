"""Plans as data: which steps are stochastic, what they cost, and how they are drawn."""

import numpy as np
import pytest

from actors.rollout.plans import Fork, Plan, make_plan, trainable_steps
from actors.rollout.plans.plan import visits
from actors.rollout.plans.settings import (
    ChainSettings,
    SamplesSettings,
    TreeSettings,
    TrunkSettings,
    WindowSettings,
)
from actors.rollout.plans.window import window_start
from services.base.errors import UserError


def test_branches_at_the_first_steps_only():
    plan = make_plan(TrunkSettings(seeds=4, explorations=6, branch_steps=4), 10)
    assert plan.trained_steps == [0, 1, 2, 3]
    assert plan.nfe == 4 * (4 + 6 * (9 + 8 + 7 + 6)), "no trunk goes on beyond its last branches"
    assert plan.leaves == 4 * 6 * 4
    assert make_plan(TrunkSettings(branch_steps=99), 10) == make_plan(TrunkSettings(), 10)


def test_branches_of_the_first_step_may_have_strides_of_their_own():
    settings = TrunkSettings(seeds=2, explorations=6, branch_steps=4, strides=(9.0,), first_strides=(2.0,))
    plan = make_plan(settings, 6)
    assert [fork.strides for fork in plan.forks[:4]] == [(2.0,), (9.0,), (9.0,), (9.0,)]
    assert plan.nfe == 2 * (4 + 6 * (3 + 1 + 1 + 1))
    with pytest.raises(ValueError, match="there are 2, but strides has 1; give as many"):
        TrunkSettings(first_strides=(1.0, 2.0))


@pytest.mark.parametrize(
    ("settings", "num_steps", "nfe", "leaves", "actions"),
    [
        (ChainSettings(seeds=24), 10, 240, 24, 216),
        (TrunkSettings(seeds=4, explorations=6), 10, 1116, 216, 216),
        (WindowSettings(seeds=12, size=4), 25, 300, 12, 48),
        (TrunkSettings(seeds=1, explorations=12, branch_steps=8, strides=(1.0, 2.0)), 16, 1688, 192, 96),
        (TreeSettings(splits=(0, 3, 6, 9)), 20, 203, 16, 202),
        (SamplesSettings(seeds=24), 14, 336, 24, 0),
        (SamplesSettings(seeds=24), 10, 240, 24, 0),
    ],
    ids=["Flow-GRPO", "TempFlow-GRPO", "MixGRPO", "G²RPO", "BranchGRPO", "AWM", "DiffusionNFT"],
)
def test_costs_are_the_published_ones(settings, num_steps, nfe, leaves, actions):
    """As published, but for two: G²RPO's 1704 run the anchor to the end, 8 steps more, and the branched states once
    more; BranchGRPO's 218 trained edges have the 16 of the last step.
    """
    plan = make_plan(settings, num_steps)
    assert (plan.nfe, plan.leaves, plan.actions) == (nfe, leaves, actions)


def test_visits_reach_the_end_whatever_the_stride():
    assert visits(3, 8, 1.0) == (3, 4, 5, 6, 7, 8)
    assert visits(3, 8, 2.0) == (3, 5, 7, 8)
    assert visits(4, 10, 2.5) == (4, 6, 9, 10)
    assert visits(7, 8, 5.0) == (7, 8)
    assert visits(8, 8, 3.0) == (8,)


def test_each_stratum_is_drawn_once_and_every_step_by_its_chance():
    settings = TrunkSettings(seeds=1, explorations=2, branch_steps=7, strata=3)
    plans = [make_plan(settings, 10, (0, step, row)) for step in range(30) for row in range(40)]
    drawn = np.zeros(10)
    for plan in plans:
        assert len(plan.trained_steps) == 3
        assert sum(1 / plan.forks[i].chance for i in plan.trained_steps) == pytest.approx(7)
        drawn[plan.trained_steps] += 1
    np.testing.assert_allclose(drawn[:7] / len(plans), [1 / 3] * 3 + [1 / 2] * 4, atol=0.05)
    assert not drawn[7:].any()
    assert make_plan(settings, 10, (5, 6, 7)) == make_plan(settings, 10, (5, 6, 7))
    assert trainable_steps(settings, 10) == list(range(7))


def test_a_progressive_window_slides_and_starts_over():
    settings = WindowSettings(size=4, every=25, strategy="progressive")
    rng = np.random.default_rng(0)
    starts = [window_start(settings, 10, step, rng) for step in range(175)]
    assert starts == [start for start in (0, 1, 2, 3, 4, 5) for _ in range(25)] + [0] * 25
    assert make_plan(settings, 10, (0, 130, 0)).trained_steps == [5, 6, 7, 8]


def test_a_decaying_window_moves_on_sooner_beyond_its_threshold():
    settings = WindowSettings(size=2, every=4, strategy="decay", decay_from=1, decay_rate=0.7)
    rng = np.random.default_rng(0)
    starts = [window_start(settings, 6, step, rng) for step in range(12)]
    # 4, 4, ⌈4·e^−.7⌉ = 2, ⌈4·e^−1.4⌉ = 1
    assert starts == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 0]


def test_a_random_window_lies_within_its_bounds_and_is_shared_by_a_step():
    settings = WindowSettings(size=3, strategy="random", within=5)
    by_step = [{make_plan(settings, 10, (3, step, row)) for row in range(4)} for step in range(60)]
    assert all(len(plans) == 1 for plans in by_step)
    starts = {next(iter(plans)).trained_steps[0] for plans in by_step}
    assert starts == {0, 1, 2}
    assert trainable_steps(settings, 10) == [0, 1, 2, 3, 4]


def test_a_shared_noise_is_one_trunk_that_splits():
    plan = make_plan(ChainSettings(seeds=12, shared_noise=True), 16)
    assert plan.seeds == 1
    assert plan.forks[0].width == 12
    assert (plan.nfe, plan.leaves, plan.siblings) == (1 + 12 * 15, 12, 1)
    late = make_plan(WindowSettings(seeds=6, size=2, shared_noise=True, every=1), 8, (0, 3, 0))
    assert late.trained_steps == [3, 4]
    assert (late.nfe, late.leaves) == (4 + 6 * 4, 6)


def test_a_share_of_the_chain_is_trained():
    settings = ChainSettings(seeds=2, trained_share=0.6)
    plans = [make_plan(settings, 16, (0, step, 0)) for step in range(40)]
    assert {len(plan.trained_steps) for plan in plans} == {9}
    assert len({tuple(plan.trained_steps) for plan in plans}) > 30
    assert all(fork.width == 1 for plan in plans for fork in plan.forks)


def test_a_tree_splits_where_it_is_told_and_prunes_depths_from_the_end():
    plan = make_plan(TreeSettings(splits=(0, 3, 6, 9)), 16)
    assert plan.trunks() == [1, 2, 2, 2, 4, 4, 4, 8, 8, 8, *[16] * 6]
    assert (plan.leaves, plan.siblings) == (16, 1)
    pruned = [
        make_plan(TreeSettings(splits=(0, 3), pruned_depths=2), 6, (0, step, 0)).trained_steps for step in range(5)
    ]
    assert pruned == [[0, 1, 2], [0, 1, 4], [0, 3, 4], [2, 3, 4], [0, 1, 2]]
    assert plan.nfe == sum(plan.trunks())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TreeSettings(splits=(0, 5)), r"plan\.splits: \[0, 5\] must all be in steps 0 to 4"),
        (TreeSettings(splits=(0, 1, 1)), r"plan\.splits: \[0, 1, 1\] names a step twice"),
        (TreeSettings(splits=(0,), pruned_depths=5), r"plan\.pruned_depths: 5 leaves none"),
        (TrunkSettings(strata=6), r"plan\.strata: 6 steps cannot be drawn from 5"),
        (WindowSettings(size=6), r"plan\.size: a window of 6 steps does not fit into 5"),
        (WindowSettings(size=4, within=3), r"plan\.size: a window of 4 steps does not fit into 3"),
    ],
)
def test_a_plan_that_does_not_fit_the_schedule_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_plan(settings, 6)


def test_flash_goes_on_in_fewer_steps_after_its_window():
    plain = make_plan(WindowSettings(seeds=12, size=4), 25)
    flash = make_plan(WindowSettings(seeds=12, size=4, stride=2.5, solver="dpm2"), 25)
    assert flash.trained_steps == plain.trained_steps
    assert flash.nfe == 12 * (4 + 9)
    assert plain.nfe == 12 * 25


def test_leaves_of_a_fork_at_the_last_step():
    assert Plan(2, (Fork(), Fork(3))).leaves == 6
    assert Plan(2, (Fork(2, keep_trunk=False), Fork(3, keep_trunk=False))).leaves == 12
    assert Plan(2, (Fork(), Fork())).leaves == 2
