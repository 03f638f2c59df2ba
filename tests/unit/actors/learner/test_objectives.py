"""The gradient of each objective on decisions against a float64 hand formula. Those on images are beside this file."""

import itertools

import numpy as np
import pytest
import torch

from actors.learner.learner import Learner
from actors.learner.settings import GrpoSettings, LearnerSettings
from actors.methods.flow_dppo import DppoSettings
from actors.methods.grpo_guard import GuardSettings
from actors.policy.policy import Policy
from actors.policy.settings import CPSSettings, DanceSettings, FlowSDESettings
from actors.rollout.plans.settings import TrunkSettings
from tests.helpers.actions import actions_of
from tests.helpers.exact_learners import (
    STEPS,
    TRUNK,
    exact_learner,
    forward,
    generated,
    gradient,
    move,
    same,
    tensor,
)
from tests.helpers.tiny import tiny_settings

DIVERGENCE = 3.5e-4
"""A bound that some decisions of the tests exceed."""
KERNELS = {"flow_sde": FlowSDESettings(), "dance": DanceSettings(), "cps": CPSSettings()}
GRPO_CASES = [
    (GrpoSettings(clip_range=0.05, kl=0.03), "flow_sde"),
    (GrpoSettings(clip_range=0.05, noise_weights=False, kl=0.03), "dance"),
    (GrpoSettings(clip_range=0.05, noise_weights=False, kl=0.03), "cps"),
    (GrpoSettings(clip_range=0.05, kl=0.03, kl_dt=False), "flow_sde"),
    (GuardSettings(clip_range=0.05, kl=0.03), "flow_sde"),
    (GuardSettings(clip_range=0.05, kl=0.03), "dance"),
    (DppoSettings(kl=0.03), "flow_sde"),
    (DppoSettings(kl=0.03), "cps"),
]


@pytest.mark.parametrize(("objective", "kernel"), GRPO_CASES, ids=lambda value: getattr(value, "name", value))
def test_gradient_on_decisions_is_that_of_the_hand_formula(sd3_folder, objective, kernel):
    decisions, advantage_NK = generated(sd3_folder, TRUNK, KERNELS[kernel])
    learner = exact_learner(sd3_folder, objective, KERNELS[kernel], TRUNK)
    found = gradient(learner, [(decisions, advantage_NK)])
    policy, grid = learner.policy, learner.policy.sigmas.tolist()
    conditioning = {name: tensor(rows) for name, rows in decisions.conditioning.items()}
    mean_std = [float(learner.kernel.std_T[i]) for i in range(STEPS - 1)]
    action_NKZ = actions_of(decisions, learner.kernel)
    total = 0.0
    for n, i in enumerate(decisions.step_N):
        x = tensor(decisions.state_NZ[n : n + 1])
        step, sigma, std = torch.tensor([i]), torch.tensor([grid[i]]), float(learner.kernel.std_T[i])
        mean = learner.kernel.mean(x, forward(policy, x, sigma, conditioning), step)
        with torch.no_grad(), policy.base():
            base = learner.kernel.mean(x, forward(policy, x, sigma, conditioning), step)
        apart = (mean - base).square().mean() / (1 if kernel == "cps" else 2 * std**2)
        apart = apart if objective.kl_dt else apart * (grid[i] - grid[i + 1])
        for k in range(advantage_NK.shape[1]):
            distance = (tensor(action_NKZ[n, k]) - mean[0]).square().mean()
            log_prob = -distance if kernel == "cps" else -distance / (2 * std**2)
            delta = log_prob - log_prob.detach()
            weight = 1.0
            if isinstance(objective, GuardSettings):
                ratio = ((delta + (mean - mean.detach()).square().mean() / (2 * std**2)) * std).exp()
                weight = 1 / (grid[i] - grid[i + 1])
            else:
                ratio = delta.exp()
                weight = std / np.mean(mean_std) if getattr(objective, "noise_weights", False) else 1.0
            loss = -weight * float(np.float32(advantage_NK[n, k])) * ratio + objective.kl * apart
            total = total + loss / advantage_NK.size
    total.backward()
    same(found, policy.parameters)


@pytest.mark.parametrize(
    ("objective", "kernel"),
    [
        (GrpoSettings(clip_range=1e-3), "flow_sde"),
        (GrpoSettings(clip_range=1e-3, noise_weights=False), "cps"),
        (GuardSettings(clip_range=1e-3), "flow_sde"),
        (GuardSettings(clip_range=1e-3), "dance"),
        (DppoSettings(max_divergence=DIVERGENCE), "flow_sde"),
        (DppoSettings(max_divergence=DIVERGENCE), "cps"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_gradient_after_an_optimizer_step_compares_with_the_policy_before_it(sd3_folder, objective, kernel):
    """Where μ has left μ_old: ratios other than 1, some clipped, and the term of GRPO-Guard that needs μ_old."""
    decisions, advantage_NK = generated(sd3_folder, TRUNK, KERNELS[kernel])
    learner = exact_learner(sd3_folder, objective, KERNELS[kernel], TRUNK)
    policy, grid = learner.policy, learner.policy.sigmas.tolist()
    micros = list(learner.objective.micro_batches(decisions, advantage_NK))
    conditioning = {name: tensor(rows) for name, rows in decisions.conditioning.items()}

    def mean(n):
        i, x = int(decisions.step_N[n]), tensor(decisions.state_NZ[n : n + 1])
        return learner.kernel.mean(x, forward(policy, x, torch.tensor([grid[i]]), conditioning), torch.tensor([i]))[0]

    with torch.no_grad():
        old_values = [learner.objective.old(micro) for micro in micros]
        old = [mean(n) for n in range(len(decisions.step_N))]
    move(policy.parameters, 7)
    sum(learner.objective.loss(*pair).total for pair in zip(micros, old_values, strict=True)).backward()
    found = {name: parameter.grad.clone() for name, parameter in policy.parameters.items()}
    policy.transformer.zero_grad()

    stds = [float(learner.kernel.std_T[i]) for i in range(STEPS - 1)]
    action_NKZ = actions_of(decisions, learner.kernel)
    total, cut = 0.0, []
    for n, i in enumerate(decisions.step_N):
        now, std = mean(n), stds[i]
        for k in range(advantage_NK.shape[1]):
            action, a = tensor(action_NKZ[n, k]), float(advantage_NK[n, k])
            closer = (action - old[n]).square().mean() - (action - now).square().mean()
            delta = closer if kernel == "cps" else closer / (2 * std**2)
            weight = 1.0
            if isinstance(objective, GuardSettings):
                delta = (delta + (now - old[n]).square().mean() / (2 * std**2)) * std
                weight = 1 / (grid[i] - grid[i + 1])
            elif getattr(objective, "noise_weights", False):
                weight = std / np.mean(stds)
            ratio = delta.exp()
            if isinstance(objective, DppoSettings):
                divergence = (now - old[n]).square().mean().item() / (2 * std**2)
                cut.append(divergence >= DIVERGENCE and a * (ratio.item() - 1) > 0)
            else:
                cut.append(a * (ratio.item() - 1) > abs(a) * objective.clip_range)
            total = total - weight * (a * ratio if not cut[-1] else 0.0)
    total.backward()
    assert 0 < sum(cut) < len(cut) / 2
    same(found, policy.parameters)


def test_drawing_steps_leaves_the_gradient_unbiased(sd3_folder):
    """The mean over all draws of one stratum is the gradient of the full plan, exactly."""
    kernel, objective = FlowSDESettings(), GrpoSettings(kl=0.02)
    full, advantage_NK = generated(sd3_folder, TRUNK, kernel)
    whole = gradient(exact_learner(sd3_folder, objective, kernel, TRUNK), [(full, advantage_NK)])
    drawn: dict[int, dict] = {}
    settings = TrunkSettings(seeds=2, explorations=3, strata=1)
    for row in itertools.count():
        decisions, _ = generated(sd3_folder, settings, kernel, row)
        step = int(decisions.step_N[0])
        if step not in drawn:
            rows = full.step_N == step
            np.testing.assert_array_equal(decisions.mean_NZ, full.mean_NZ[rows])
            assert decisions.noise_NK == [full.noise_NK[n] for n in np.flatnonzero(rows)]
            learner = exact_learner(sd3_folder, objective, kernel, settings)
            drawn[step] = gradient(learner, [(decisions, advantage_NK[rows])])
        if len(drawn) == STEPS - 1:
            break
    for name, expected in whole.items():
        mean = torch.stack([found[name] for found in drawn.values()]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-7, atol=1e-14)


def test_decisions_without_advantage_cost_nothing_unless_held_to_the_reference(sd3_folder):
    decisions, advantage_NK = generated(sd3_folder, TRUNK, FlowSDESettings())
    pruned = advantage_NK.copy()
    pruned[::2] = 0
    costs = {}
    for kl in (0.0, 0.1):
        policy = Policy(tiny_settings(sd3_folder), seed=0, parts="transformer")
        learner = Learner(policy, FlowSDESettings(), GrpoSettings(kl=kl), LearnerSettings(), [0, 1, 2, 3])
        costs[kl] = [learner.update([(decisions, a)]).nfe for a in (advantage_NK, pruned)]
    assert costs[0.0] == [3 * 8, 3 * 4]
    assert costs[0.1] == [4 * 8, 4 * 8]
