"""One task and one update of a policy, in plain PyTorch: what the parts compare."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from actors.learner.learner import Learner
from actors.learner.settings import GrpoSettings, LearnerSettings
from actors.learner.stats import UpdateStats
from actors.policy.families.family import Parts
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings, PolicySettings
from actors.rollout.plans import Plan, make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Decisions, Task

KERNEL = FlowSDESettings()
LINEAR = LearnerSettings(lr=1e5, eps=1e3, weight_decay=0, max_drift=100)
"""So large an epsilon makes the step of AdamW lr / eps = 100 times the gradient. With the usual one, the first step is
little more than the gradient's sign, which rounding turns wherever the gradient is near zero."""
PROMPT = "a red circle"


def stir(policy: Policy, seed: int = 1, scale: float = 0.3) -> None:
    """Give an adapter, whose fresh weights change nothing, random ones: the same on each device."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def policy_of(settings: PolicySettings, parts: Parts = "all") -> Policy:
    """The policy with an adapter that changes something, the same on each device."""
    policy = Policy(settings, seed=0, parts=parts)
    stir(policy, scale=0.1)
    return policy


def task_of(settings: PolicySettings, micro_batch: int = 8) -> tuple[Decisions, np.ndarray]:
    """The decisions of one task and its images, (M, H, W, 3) uint8."""
    policy = policy_of(settings)
    generator = Generator(policy, KERNEL, RolloutSettings(micro_batch=micro_batch, decode_batch=micro_batch))
    generator.load(policy.export(0))
    decisions, images_MHWC, *_ = generator.generate(Task(0, PROMPT, (7, 0, 0), 0), plan_of(settings))
    assert isinstance(decisions, Decisions)
    return decisions, images_MHWC


def learner_of(policy: Policy, micro_batch: int = 3, lr: float = LINEAR.lr, optimizer_steps: int = 1) -> Learner:
    """A learner whose step is linear in the gradient."""
    settings = LINEAR.model_copy(update={"micro_batch": micro_batch, "lr": lr})
    objective = GrpoSettings(optimizer_steps=optimizer_steps)
    return Learner(policy, KERNEL, objective, settings, plan_of(policy.settings).trained_steps)


def advantages(decisions: Decisions) -> np.ndarray:
    """Made-up ones, (N, K)."""
    return np.random.default_rng(0).normal(size=decisions.log_prob_NK.shape)


def update_of(settings: PolicySettings, decisions: Decisions, micro_batch: int = 3) -> tuple[Learner, UpdateStats]:
    """A learner after one update on these decisions, with made-up advantages."""
    learner = learner_of(policy_of(settings, "transformer"), micro_batch)
    return learner, learner.update([(decisions, advantages(decisions))])


def still_update(settings: PolicySettings, decisions: Decisions) -> UpdateStats:
    """An update of two minibatches, the same decisions in both, by steps too small to change a weight."""
    learner = learner_of(policy_of(settings, "transformer"), lr=1e-30, optimizer_steps=2)
    return learner.update([(decisions, advantages(decisions))] * 2)


def change_of(learner: Learner, settings: PolicySettings) -> np.ndarray:
    """How far the update has moved the trained parameters, all in one row, fp32."""
    before = policy_of(settings, "transformer").arrays()
    after = learner.policy.arrays()
    return np.concatenate([(after[name] - before[name]).ravel() for name in before])


def plan_of(settings: PolicySettings) -> Plan:
    """TempFlow-GRPO's plan with one trunk and three branches a step."""
    return make_plan(TrunkSettings(seeds=1, explorations=3), settings.num_steps)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Products and convolutions of fp32 are fp32 on a GPU, too."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    try:
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def free() -> None:
    """Give memory of models that nobody refers to any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
