"""The loops of sampling and learning give a GPU its work without waiting for it."""

import warnings
from collections.abc import Callable, Iterator
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
from tests.helpers.pretend_card import pretend_card
from tests.helpers.tiny import tiny_settings

NEEDS_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


def waits_for_the_card(work: Callable[[], object]) -> list[str]:
    """What PyTorch says of each wait for the GPU of this machine."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    said = [str(warning.message) for warning in caught]
    return [message for message in said if "synchronizing CUDA operation" in message]


@pytest.fixture(params=["no card", pytest.param("cuda", marks=NEEDS_CUDA)])
def waits_of(request, tiny_folder) -> Iterator[Callable[[Callable[[], object]], list[str]]]:
    """What waits for the GPU in a piece of work: for the one of this machine, and for one that is not there."""
    for case in FAMILIES:
        tiny_folder(case)
    if request.param == "cuda":
        yield waits_for_the_card
        return
    with pretend_card() as card:

        def waits(work: Callable[[], object]) -> list[str]:
            before = len(card.waits)
            work()
            return card.waits[before:]

        yield waits


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_waiting_does_not_grow_with_the_steps_or_the_micro_batches(case, tiny_folder, waits_of):
    sampling, learning = {}, {}
    for steps in (4, 6):
        changes = {"device": "cuda", "num_steps": steps, "guidance": case.guidances[-1], **case.settings}
        policy = Policy(tiny_settings(tiny_folder(case), **changes), 0)
        generator = Generator(policy, FlowSDESettings(), RolloutSettings(micro_batch=4, decode_batch=16))
        generator.load(policy.export(0))
        plan = make_plan(TrunkSettings(seeds=1, explorations=2), steps)
        task = Task(0, "a red cat", (0, 0, 0), 0)
        decisions, *_ = generator.generate(task, plan)  # what is made once is made before
        sampling[steps] = waits_of(partial(generator.generate, task, plan))
        learner = learner_of(
            tiny_folder(case), settings=LearnerSettings(lr=1e-3, micro_batch=1, max_drift=10), **changes
        )
        advantage = np.random.default_rng(0).normal(size=decisions.log_prob_NK.shape)
        learner.update([(decisions, advantage)])
        learning[steps] = waits_of(partial(learner.update, [(decisions, advantage)]))
    for waits in (sampling, learning):
        assert len(waits[4]) == len(waits[6]), waits
        assert waits[4]  # a result is read at the end
