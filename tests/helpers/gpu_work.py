"""One task and one update of a policy on a device, in plain PyTorch: what the tests in this folder compare."""

import numpy as np

from actors.learner.learner import Learner
from actors.learner.settings import GrpoSettings, LearnerSettings
from actors.learner.stats import UpdateStats
from actors.policy.family import Parts
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings, PolicySettings
from actors.rollout.plans import Plan, make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Decisions, Task
from system.recipe.load import load_config
from tests.helpers.families import Case
from tests.helpers.tiny import stir, tiny_settings

KERNEL = FlowSDESettings()
LINEAR = LearnerSettings(lr=1e5, eps=1e3, weight_decay=0, max_drift=1)
"""So large an epsilon makes the step of AdamW lr / eps = 100 times the gradient. With the usual one, the first step is
little more than the gradient's sign, which rounding turns wherever the gradient is near zero."""


def family_settings(case: Case, folder, **changes) -> PolicySettings:
    """Settings of a family's tiny model, with guidance on."""
    return tiny_settings(folder, **{"guidance": case.guidances[-1], **case.settings, **changes})


def miniature_settings(**changes) -> PolicySettings:
    """Settings of the embedded miniature, as its recipe has them."""
    return load_config("shapes").policy.model_copy(update=changes)


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
    decisions, images_MHWC, *_ = generator.generate(Task(0, "a red circle", (7, 0, 0), 0), _plan(settings))
    assert isinstance(decisions, Decisions)
    return decisions, images_MHWC


def update_of(settings: PolicySettings, decisions: Decisions, micro_batch: int = 3) -> tuple[Learner, UpdateStats]:
    """A learner after one update on these decisions, with made-up advantages."""
    learner = Learner(
        policy_of(settings, "transformer"),
        KERNEL,
        GrpoSettings(),
        LINEAR.model_copy(update={"micro_batch": micro_batch}),
        _plan(settings).trained_steps,
    )
    advantage_NK = np.random.default_rng(0).normal(size=decisions.log_prob_NK.shape)
    return learner, learner.update([(decisions, advantage_NK)])


def change_of(learner: Learner, settings: PolicySettings) -> np.ndarray:
    """How far the update has moved the trained parameters, all in one row, fp32."""
    before = policy_of(settings, "transformer").arrays()
    after = learner.policy.arrays()
    return np.concatenate([(after[name] - before[name]).ravel() for name in before])


def _plan(settings: PolicySettings) -> Plan:
    return make_plan(TrunkSettings(seeds=1, explorations=3), settings.num_steps)
