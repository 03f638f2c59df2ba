"""Stepwise-Flow-GRPO: its previews against Tweedie's formula, and what baselines cost at any stride."""

import pytest
import torch

from actors.methods import find_method
from actors.policy.kernels import make_kernel
from actors.policy.policy import Policy
from actors.policy.solvers import euler
from actors.rollout.plans import make_plan
from actors.rollout.sampler import Sampler
from system.capacity.counts import live_rows
from tests.helpers.tiny import tiny_settings

METHOD = find_method("stepwise")
SEEDS, STEPS = 3, 4


def sampled(folder, **changes):
    """The policy, its embeddings, and the trajectories of a task with STEPS + 1 sampling steps."""
    policy = Policy(tiny_settings(folder, num_steps=STEPS + 1), seed=0)
    plan = make_plan(METHOD.plan.model_copy(update={"seeds": SEEDS, "size": STEPS} | changes), STEPS + 1)
    conditioning = policy.family.encode(["a cat"])
    sampler = Sampler(policy.family, policy.sigmas, make_kernel(METHOD.kernel, policy.sigmas), 8)
    front = sampler(plan, [(0, 0, 0, b) for b in range(plan.seeds)], [0] * plan.seeds, conditioning)
    assert (front.cost.nfe, len(front.leaf_MZ)) == (plan.nfe, plan.leaves)
    return policy, conditioning, front


@torch.no_grad()
def test_a_baseline_is_the_preview_of_its_state_by_tweedie(sd3_folder):
    policy, conditioning, front = sampled(sd3_folder)
    for n, step in enumerate(front.tree.step_N):
        x, sigma = torch.from_numpy(front.decisions.state_NZ[n : n + 1]), policy.sigmas[step]
        preview = x - sigma * policy.family.velocity(x, sigma.expand(1), conditioning)
        torch.testing.assert_close(front.leaf_MZ[front.tree.leaf_NKL[n, 0, :1]], preview, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_stride_of_two_completes_a_state_over_every_second_grid_point(sd3_folder):
    """From step i of five: 0, 2, 4, end; 1, 3, end; 2, 4, end; 3, end."""
    policy, conditioning, front = sampled(sd3_folder, baseline_stride=2.0)
    points = {0: (0, 2, 4, 5), 1: (1, 3, 5), 2: (2, 4, 5), 3: (3, 5)}
    for n, step in enumerate(front.tree.step_N):
        x = torch.from_numpy(front.decisions.state_NZ[n : n + 1])
        for here, there in zip(points[int(step)], points[int(step)][1:], strict=False):
            v = policy.family.velocity(x, policy.sigmas[here].expand(1), conditioning)
            x = euler(x, v, policy.sigmas[here], policy.sigmas[there])
        torch.testing.assert_close(front.leaf_MZ[front.tree.leaf_NKL[n, 0, :1]], x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "baselines"),
    [(1.0, sum(range(1, 10))), (2.0, 4 + 4 + 3 + 3 + 2 + 2 + 1 + 1), (9.0, 1), (10.0, 0), (100.0, 0)],
)
def test_baselines_cost_their_grid_points_after_the_state(stride, baselines):
    """At T = 10, step i has ⌈(10 − i) / stride⌉ − 1 velocities besides that of its state."""
    plan = make_plan(METHOD.plan.model_copy(update={"baseline_stride": stride}), 10)
    assert plan.nfe == 24 * (10 + baselines) == sum(live_rows(plan))
    assert (plan.leaves, plan.decisions) == (240, 216)


def test_the_plan_costs_what_the_method_says():
    plan = make_plan(METHOD.plan, 10)
    assert (plan.nfe, plan.leaves, plan.decisions) == (240, 240, 216)
    assert plan.trained_steps == list(range(9))
