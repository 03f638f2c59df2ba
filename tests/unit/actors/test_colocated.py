"""Two roles over one base: the base exists once, and neither role sees the other's weights."""

import gc

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from actors.colocated import ColocatedWorker
from actors.learner.actor import LearnerWorker
from actors.learner.settings import EmaSettings, GrpoSettings, LearnerSettings
from actors.policy.settings import FlowSDESettings
from actors.rollout.actor import RolloutWorker
from actors.rollout.plans import make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.sampling import Sampling
from actors.rollout.settings import RolloutSettings
from actors.trajectory import Task
from services.base.logs import LogFile
from tests.helpers.tiny import tiny_settings

KERNEL, OBJECTIVE, ROLLOUT = FlowSDESettings(), GrpoSettings(kl=0.01), RolloutSettings(micro_batch=8)
LEARNER = LearnerSettings(lr=1e-2, micro_batch=3, max_drift=10, ema=EmaSettings(every=1))
PLAN = make_plan(TrunkSettings(seeds=2, explorations=3), 5)


def load(rollout, sent) -> str:
    """What the learner sends, to the worker; returns the checksum."""
    *buckets, label = sent
    assert rollout.load(label, *buckets) == (label.version, label.checksum)
    return label.checksum


def epoch(rollout, learner, version: int):
    """Generate, update, broadcast, evaluate with the moving average, broadcast again, generate."""
    task = Task(0, "a red cat", (0, version, 0), version)
    decisions, images, _ = rollout.generate(task, PLAN)
    advantage = np.random.default_rng(version).normal(size=decisions.log_prob_NK.shape)
    learner.update([advantage], version, decisions)
    confirmed = load(rollout, learner.evaluated())
    evaluated, _ = rollout.sample(["a dog"], [(0, 9, 9)], Sampling(16, 16, 7, 4.5))
    base, _ = rollout.sample(["a dog"], [(0, 9, 9)], Sampling(16, 16, 7, 4.5, base_after=0.0))
    exported = load(rollout, learner.export(version + 1))
    return [decisions.log_prob_NK, images, evaluated, base, confirmed, exported]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_colocated_equals_split_bit_for_bit(sd3_folder, tmp_path, lora):
    policy = tiny_settings(sd3_folder, guidance=4.5, **({} if lora else {"lora": None}))
    log = LogFile(tmp_path / "log", "test", "colocated")
    split = (
        RolloutWorker(policy, KERNEL, ROLLOUT, 0, log, keeps_base=True),
        LearnerWorker(policy, KERNEL, OBJECTIVE, LEARNER, PLAN.trained_steps, 0, log),
    )
    one = ColocatedWorker(policy, KERNEL, OBJECTIVE, LEARNER, PLAN.trained_steps, 0, log, rollout=ROLLOUT)
    for rollout, learner in (split, (one, one)):
        load(rollout, learner.export(0))
    for version in range(2):
        expected, found = epoch(*split, version), epoch(one, one, version)
        for left, right in zip(expected, found, strict=True):
            assert np.array_equal(left, right)


def test_the_base_exists_once_in_the_process(sd3_folder, tmp_path):
    policy = tiny_settings(sd3_folder)
    one = ColocatedWorker(
        policy,
        KERNEL,
        OBJECTIVE,
        LEARNER,
        PLAN.trained_steps,
        0,
        LogFile(tmp_path / "log", "test", "colocated"),
        rollout=ROLLOUT,
    )
    transformer = one.policy.transformer
    assert one.learner.policy.transformer is transformer is one.generator.policy.transformer
    frozen = [p for p in transformer.parameters() if not p.requires_grad]
    largest = max(frozen, key=torch.Tensor.numel)
    gc.collect()
    tensors = [other for other in gc.get_objects() if isinstance(other, torch.Tensor) and other.shape == largest.shape]
    # Other tests of this process may have left tensors without data.
    tensors = [other for other in tensors if not other.is_meta and not isinstance(other, FakeTensor)]
    copies = {other.data_ptr() for other in tensors if torch.equal(other, largest)}
    assert copies == {largest.data_ptr()}
    twice = sum(tensor.numel() for tensor in one.generator.sampled.values())
    assert twice < 0.5 * sum(p.numel() for p in frozen)
