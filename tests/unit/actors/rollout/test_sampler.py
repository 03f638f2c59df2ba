"""The wavefront sampler against the plain way: one trajectory at a time."""

import itertools

import numpy as np
import pytest
import torch

from actors.policy.kernels import FlowSDE
from actors.policy.noise import noise
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.policy.solvers import dpm_solver_2m, euler
from actors.rollout.plans import Fork, Plan, make_plan
from actors.rollout.plans.plan import Fate, visits
from actors.rollout.plans.settings import ChainSettings, TrunkSettings, WindowSettings
from actors.rollout.sampler import Sampler
from tests.helpers.actions import actions_of
from tests.helpers.tiny import tiny_settings

ROOT = (7, 3, 11)


def sampler_of(policy: Policy, micro_batch: int = 8) -> Sampler:
    kernel = FlowSDE(FlowSDESettings(), policy.sigmas)
    return Sampler(policy.family, policy.sigmas, kernel, micro_batch)


@pytest.fixture(scope="module")
def policy(sd3_folder) -> Policy:
    return Policy(tiny_settings(sd3_folder), seed=0)


def one_by_one(policy, plan, conditioning):
    """Every trunk and every branch alone, batch size 1, recomputing whatever it needs."""
    kernel = FlowSDE(FlowSDESettings(), policy.sigmas)
    shape = policy.family.latent_shape

    def velocity(x, i):
        return policy.family.velocity(x, policy.sigmas[i].expand(1), conditioning)

    def finish(x, start):
        for i in range(start, policy.settings.num_steps):
            x = euler(x, velocity(x, i), *policy.sigmas[i : i + 2])
        return x

    leaves = {}
    for b in range(plan.seeds):
        trunk = noise([(*ROOT, b)], shape)
        for i, fork in enumerate(plan.forks):
            for k in range(fork.width):
                step = torch.tensor([i])
                mean = kernel.mean(trunk, velocity(trunk, i), step)
                action = mean + kernel.std_T[i] * noise([(*ROOT, b, i, k)], shape)
                leaves[b, i, k] = (trunk, action, finish(action, i + 1))
            trunk = euler(trunk, velocity(trunk, i), *policy.sigmas[i : i + 2])
    return leaves


@torch.no_grad()
def test_wavefront_equals_one_trajectory_at_a_time(policy):
    plan = make_plan(TrunkSettings(seeds=2, explorations=3), policy.settings.num_steps)
    conditioning = policy.family.encode(["a cat"])
    front = sampler_of(policy)(plan, [(*ROOT, b) for b in range(2)], [0, 0], conditioning)
    expected = one_by_one(policy, plan, conditioning)
    assert len(expected) == front.tree.num_leaves == plan.leaves == 2 * 3 * 4
    action_NKZ = actions_of(front.decisions, sampler_of(policy).kernel)
    for n, (step, seed) in enumerate(zip(front.tree.step_N, front.tree.seed_N, strict=True)):
        for k in range(3):
            state, action, leaf = expected[int(seed), int(step), k]
            m = front.tree.leaf_NKL[n, k, 0]
            np.testing.assert_allclose(front.decisions.state_NZ[n], state[0], atol=1e-5)
            np.testing.assert_allclose(action_NKZ[n, k], action[0], atol=1e-5)
            np.testing.assert_allclose(front.leaf_MZ[m], leaf[0], atol=1e-5)


def test_siblings_are_next_to_each_other_in_the_order_of_the_leaves(policy):
    """Scorers that compare the siblings of a state rely on it."""
    plan = make_plan(TrunkSettings(seeds=2, explorations=3), policy.settings.num_steps)
    tree = sampler_of(policy)(plan, [(*ROOT, b) for b in range(2)], [0, 0], policy.family.encode(["a cat"])).tree
    np.testing.assert_array_equal(tree.leaf_NKL.reshape(-1, 3), np.arange(plan.leaves).reshape(-1, 3))


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_nfe_is_the_published_cost(sd3_folder, guidance):
    policy = Policy(tiny_settings(sd3_folder, num_steps=10, guidance=guidance), seed=0)
    plan = make_plan(TrunkSettings(seeds=4, explorations=6), 10)
    front = sampler_of(policy, 64)(plan, [(*ROOT, b) for b in range(4)], [0] * 4, policy.family.encode(["x"]))
    assert plan.nfe == 4 * (9 + 6 * 45) == 1116
    assert front.cost.nfe == 1116 * policy.family.forwards_per_row
    assert plan.decisions == len(front.tree.step_N) == 36
    assert plan.actions == plan.leaves == 216


def test_a_task_gives_the_same_bits_whatever_its_neighbours(policy):
    plan = make_plan(TrunkSettings(seeds=2, explorations=2), policy.settings.num_steps)
    sampler = sampler_of(policy)
    both = policy.family.encode(["a cat", "a dog"])
    one = {name: rows[1:] for name, rows in both.items()}
    roots = [(*ROOT, b) for b in range(2)]
    alone = sampler(plan, roots, [0, 0], one)
    others = [(1, 2, 3, b) for b in range(2)]
    crowd = sampler(plan, others + roots, [0, 0, 1, 1], both)
    mine = np.isin(crowd.tree.seed_N, [2, 3])
    np.testing.assert_array_equal(crowd.decisions.mean_NZ[mine], alone.decisions.mean_NZ)
    assert [crowd.decisions.noise_NK[n] for n in np.flatnonzero(mine)] == alone.decisions.noise_NK
    for n_crowd, n_alone in zip(np.flatnonzero(mine), range(len(alone.tree.step_N)), strict=True):
        for k in range(2):
            ours = crowd.leaf_MZ[crowd.tree.leaf_NKL[n_crowd, k, 0]]
            assert torch.equal(ours, alone.leaf_MZ[alone.tree.leaf_NKL[n_alone, k, 0]])


def test_chain_owns_its_one_image_at_every_step(policy):
    plan = make_plan(ChainSettings(seeds=3), policy.settings.num_steps)
    front = sampler_of(policy)(plan, [(*ROOT, b) for b in range(3)], [0] * 3, policy.family.encode(["x"]))
    assert front.tree.num_leaves == 3
    assert sorted(set(front.tree.step_N)) == [0, 1, 2, 3]
    for n, seed in enumerate(front.tree.seed_N):
        assert front.tree.leaf_NKL[n].tolist() == [[seed]]
    assert front.cost.nfe == plan.nfe == 15
    first, second = actions_of(front.decisions, sampler_of(policy).kernel)[:3, 0], front.decisions.state_NZ[3:6]
    np.testing.assert_array_equal(first, second)


def test_a_tree_owns_all_leaves_below(policy):
    split = Fork(width=2, keep_trunk=False)
    plan = Plan(1, (split, Fork(), split, Fork(), Fork()))
    front = sampler_of(policy)(plan, [(*ROOT, 0)], [0], policy.family.encode(["x"]))
    assert front.tree.num_leaves == plan.leaves == 4
    assert front.tree.leaf_NKL[0].tolist() == [[0, 1], [2, 3]]
    assert front.tree.leaf_NKL[1:].tolist() == [[[0, -1], [1, -1]], [[2, -1], [3, -1]]]
    reward = front.tree.reduce(np.array([1.0, 3.0, np.nan, 5.0]))
    assert reward[0, 0] == 2
    assert np.isnan(reward[0, 1])
    assert reward[1:].tolist()[0] == [1, 3]
    assert np.isnan(reward[2, 0])
    assert reward[2, 1] == 5


def test_a_trunk_continues_branches_ends_or_splits(policy):
    """The fates of one plan, and what they leave: images in order of the trunks alive at the end, then of birth."""
    branch, split = Fork(width=3), Fork(width=2, keep_trunk=False)
    ended, alive = Plan(1, (split, branch, Fork(), branch, Fork())), Plan(1, (branch, Fork(), Fork(), Fork(), split))
    assert [ended.fate(i) for i in range(5)] == [
        Fate.SPLITS,
        Fate.BRANCHES,
        Fate.CONTINUES,
        Fate.ENDS,
        Fate.CONTINUES,
    ]
    assert [alive.fate(i) for i in (0, 4)] == [Fate.BRANCHES, Fate.SPLITS]
    for plan, leaves in ((ended, 2 * 3 + 2 * 3), (alive, 3 + 2)):
        front = sampler_of(policy)(plan, [(*ROOT, 0)], [0], policy.family.encode(["x"]))
        assert len(front.leaf_MZ) == front.tree.num_leaves == plan.leaves == leaves
        assert front.cost.nfe == plan.nfe
    last_N = front.tree.step_N == 4
    assert front.tree.leaf_NKL[last_N, 0, 0].tolist() == [0, 1]
    np.testing.assert_array_equal(actions_of(front.decisions, sampler_of(policy).kernel)[last_N, 0], front.leaf_MZ[:2])


def test_noise_depends_on_the_address_alone():
    a, b = noise([(1, 2, 3, 0), (1, 2, 3, 1)], (4,))
    assert torch.equal(noise([(1, 2, 3, 1)], (4,))[0], b)
    assert not torch.equal(a, b)
    assert not torch.equal(noise([(1, 2, 3)], (4,)), noise([(1, 2, 3, 0)], (4,)))


@torch.no_grad()
@pytest.mark.parametrize("solver", ["euler", "dpm2"])
def test_strides_and_solver_of_completions(policy, solver):
    """Each action is completed once a stride, as if it were alone."""
    sigmas, conditioning = policy.sigmas, policy.family.encode(["a cat"])
    settings = TrunkSettings(seeds=1, explorations=2, strides=(1.0, 2.0), first_strides=(3.0, 1.0), solver=solver)
    plan = make_plan(settings, policy.settings.num_steps)
    front = sampler_of(policy)(plan, [(*ROOT, 0)], [0], conditioning)
    assert front.cost.nfe == plan.nfe
    assert front.tree.num_leaves == plan.leaves == 2 * 4 * 2

    def complete(x, grid):
        before = None
        for here, there in itertools.pairwise(grid):
            v = policy.family.velocity(x, sigmas[here].expand(1), conditioning)
            x0 = x - sigmas[here] * v
            if solver == "euler" or before is None:
                x, before = euler(x, v, sigmas[here], sigmas[there]), (x0, sigmas[here])
            elif there == len(sigmas) - 1:
                x = x0
            else:
                x = dpm_solver_2m(x, x0, before[0], sigmas[here], sigmas[there], before[1])
                before = (x0, sigmas[here])
        return x

    action_NKZ = actions_of(front.decisions, sampler_of(policy).kernel)
    for n, step in enumerate(front.tree.step_N):
        for k in range(2):
            action = torch.from_numpy(action_NKZ[n, k : k + 1])
            for place, stride in enumerate((3.0, 1.0) if step == 0 else (1.0, 2.0)):
                leaf = complete(action, visits(int(step) + 1, policy.settings.num_steps, stride))
                ours = front.leaf_MZ[front.tree.leaf_NKL[n, k, place]]
                np.testing.assert_allclose(ours, leaf[0], atol=2e-5)


def test_a_shared_noise_gives_the_forward_that_it_would_give_apart(policy):
    """One trunk that splits has decisions of one state, each with one action, and as many images."""
    plan = make_plan(ChainSettings(seeds=3, shared_noise=True), policy.settings.num_steps)
    front = sampler_of(policy)(plan, [(*ROOT, 0)], [0], policy.family.encode(["x"]))
    first = front.tree.step_N == 0
    assert first.sum() == 3
    assert (front.decisions.state_NZ[first] == front.decisions.state_NZ[0]).all()
    action_NKZ = actions_of(front.decisions, sampler_of(policy).kernel)
    assert len(np.unique(action_NKZ[first, 0].reshape(3, -1), axis=0)) == 3
    assert front.tree.leaf_NKL[first].ravel().tolist() == [0, 1, 2]
    assert front.cost.nfe == plan.nfe == 1 + 3 * 4


def test_a_window_is_an_ode_outside(policy):
    plan = make_plan(WindowSettings(seeds=2, size=2, every=1), policy.settings.num_steps, (0, 1, 0))
    front = sampler_of(policy)(plan, [(*ROOT, b) for b in range(2)], [0, 0], policy.family.encode(["x"]))
    assert sorted(front.tree.step_N.tolist()) == [1, 1, 2, 2]
    assert front.tree.num_leaves == plan.leaves == 2
    action_NKZ = actions_of(front.decisions, sampler_of(policy).kernel)
    np.testing.assert_array_equal(action_NKZ[:2, 0], front.decisions.state_NZ[2:])
    assert front.tree.leaf_NKL[:, 0, 0].tolist() == [0, 1, 0, 1]


def test_decisions_of_a_drawn_step_count_by_its_chance_and_are_those_of_the_full_plan(policy):
    full = make_plan(TrunkSettings(seeds=2, explorations=3), policy.settings.num_steps)
    drawn = make_plan(TrunkSettings(seeds=2, explorations=3, strata=1), policy.settings.num_steps, (0, 0, 5))
    roots, conditioning = [(*ROOT, b) for b in range(2)], policy.family.encode(["x"])
    every, some = (sampler_of(policy)(plan, roots, [0, 0], conditioning).decisions for plan in (full, drawn))
    step = drawn.trained_steps[0]
    assert (some.weight_N == 4).all()
    assert (every.weight_N == 1).all()
    rows = np.flatnonzero(every.step_N == step)
    np.testing.assert_array_equal(some.mean_NZ, every.mean_NZ[rows])
    assert some.noise_NK == [every.noise_NK[n] for n in rows]
