"""Learners in float64, whose gradients can be held against formulas."""

import numpy as np
import torch

from actors.learner.learner import Learner
from actors.learner.settings import EmaSettings, GrpoSettings, LearnerSettings
from actors.policy.kernels import make_kernel, noise_weights
from actors.policy.policy import Policy
from actors.rollout.plans import make_plan, trainable_steps
from actors.rollout.plans.settings import SamplesSettings, TrunkSettings
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from tests.helpers.tiny import tiny_settings

TRUNK, SAMPLES = TrunkSettings(seeds=2, explorations=3), SamplesSettings(seeds=3)
STEPS = 5


def generated(folder, plan_settings, kernel, row=0):
    """A task's experience and made-up advantages, beyond ±5 too, whose fifths and tenths are exact in fp32.

    `row` is the row that the plan is drawn for.
    """
    generator = Generator(Policy(tiny_settings(folder), 0), kernel, RolloutSettings(micro_batch=8))
    generator.load(generator.policy.export(0))
    plan = make_plan(plan_settings, STEPS, (0, 0, row))
    experience, _, (tree, *_) = generator.generate(Task(0, "a cat", (0, 0, 0), 0), plan)
    return experience, np.random.default_rng(0).integers(-12, 13, tree.leaf_NKL.shape[:2]) * 0.625


def exact_learner(folder, objective, kernel, plan_settings, settings=None) -> Learner:
    """A learner in float64 whose policy has left the base, and whose averages lie elsewhere again."""
    policy = Policy(tiny_settings(folder), seed=0, parts="transformer")
    settings = settings or LearnerSettings(lr=1e-2, micro_batch=4, max_drift=100, ema=EmaSettings())
    learner = Learner(policy, kernel, objective, settings, trainable_steps(plan_settings, STEPS))
    policy.transformer.double()
    policy.family.dtype = torch.float64
    policy.sigmas = policy.sigmas.double()
    learner.kernel = make_kernel(kernel, policy.sigmas)
    learner.objective.kernel = learner.kernel
    if isinstance(objective, GrpoSettings):
        std_T = learner.kernel.std_T if objective.noise_weights else torch.ones_like(learner.kernel.std_T)
        learner.objective.weight_T = noise_weights(std_T, trainable_steps(plan_settings, STEPS))
    policy.family.velocity = lambda x, sigma, cond: forward(policy, x, sigma, cond)
    move(policy.parameters, 0)
    for number, average in enumerate(learner.averages.values()):
        average.shadow = {name: value.double() for name, value in average.shadow.items()}
        move(average.shadow, 1 + number)
    return learner


def move(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def forward(policy, x, sigma, cond):
    """velocity() returns fp32 for the sampler; the oracle wants every bit."""
    return policy.transformer(
        hidden_states=x.double(),
        timestep=sigma.double() * 1000,
        encoder_hidden_states=cond["prompt"].double(),
        pooled_projections=cond["pooled"].double(),
        return_dict=False,
    )[0]


def gradient(learner, batch):
    """∂L of one update, unclipped, before any step."""
    found = {}

    def capture():
        found.update({name: p.grad.clone() for name, p in learner.policy.parameters.items()})
        for parameter in learner.policy.parameters.values():
            parameter.grad = None
        return 0.0

    learner.optimizer_step = capture
    learner.update(batch)
    return found


def tensor(array):
    return torch.from_numpy(array).double()


def same(found, parameters):
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-8, atol=1e-14)
