"""Learners of the tiny model, and real decisions for them to train on."""

import numpy as np

from actors.learner.learner import Learner
from actors.learner.settings import GrpoSettings, LearnerSettings
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from tests.helpers.tiny import tiny_settings

KERNEL = FlowSDESettings()
PLAN = make_plan(TrunkSettings(seeds=2, explorations=3), 5)


def tasks_of(folder, count=2, version=0, **changes):
    """Real decisions of a tiny policy with made-up advantages."""
    generator = Generator(Policy(tiny_settings(folder, **changes), 0), KERNEL, RolloutSettings(micro_batch=8))
    generator.load(generator.policy.export(version))
    rng = np.random.default_rng(0)
    batch = []
    for i in range(count):
        decisions, *_ = generator.generate(Task(i, f"prompt {i}", (0, 0, i), version), PLAN)
        batch.append((decisions, rng.normal(size=decisions.log_prob_NK.shape)))
    return batch


def learner_of(folder, objective=None, settings=None, **changes) -> Learner:
    policy = Policy(tiny_settings(folder, **changes), seed=0, parts="transformer")
    settings = settings or LearnerSettings(lr=1e-2, micro_batch=3)
    return Learner(policy, KERNEL, objective or GrpoSettings(), settings, PLAN.trained_steps)


def keep(learner, folder):
    for name, content in learner.files().items():
        (folder / name).write_bytes(content)


def random_adapter(model, folder):
    """A saved adapter that changes every image."""
    policy = Policy(tiny_settings(model, num_steps=4), seed=0)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.3, array.shape).astype(np.float32) for name, array in policy.arrays().items()}
    policy.save(folder, arrays)
    return folder
