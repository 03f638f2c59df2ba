"""The loops of sampling and learning give a GPU its work without waiting for it."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch

from actors.learner.settings import LearnerSettings
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from tests.helpers.families import FAMILIES
from tests.helpers.learners import learner_of
from tests.helpers.tiny import tiny_settings

pytestmark = pytest.mark.gpu


def waits(work) -> int:
    """How often PyTorch waits for the GPU in a piece of work."""
    work()  # what is made once is made before
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_waiting_does_not_grow_with_the_steps_or_the_micro_batches(case, tiny_folder):
    sampling, learning = {}, {}
    for steps in (4, 8):
        changes = {"device": "cuda", "num_steps": steps, "guidance": case.guidances[-1], **case.settings}
        policy = Policy(tiny_settings(tiny_folder(case), **changes), 0)
        generator = Generator(policy, FlowSDESettings(), RolloutSettings(micro_batch=8, decode_batch=64))
        generator.load(policy.export(0))
        plan = make_plan(TrunkSettings(seeds=2, explorations=2), steps)
        task = Task(0, "a red cat", (0, 0, 0), 0)
        decisions, *_ = generator.generate(task, plan)
        sampling[steps] = waits(partial(generator.generate, task, plan))
        learner = learner_of(
            tiny_folder(case), settings=LearnerSettings(lr=1e-3, micro_batch=2, max_drift=10), **changes
        )
        advantage = np.random.default_rng(0).normal(size=decisions.log_prob_NK.shape)
        learning[steps] = waits(partial(learner.update, [(decisions, advantage)]))
    assert sampling[4] == sampling[8]
    assert learning[4] == learning[8]
