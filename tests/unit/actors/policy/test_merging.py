"""The adapter merged into the base for sampling: the same velocity, and the same base afterwards."""

import numpy as np
import pytest
import torch

from actors.learner.settings import GrpoSettings, LearnerSettings
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import make_plan
from actors.rollout.plans.settings import TrunkSettings
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from tests.helpers.families import FAMILIES
from tests.helpers.learners import learner_of
from tests.helpers.tiny import stir, tiny_settings

EVERY_FAMILY = pytest.mark.parametrize("case", FAMILIES, ids=str)


def velocity(policy: Policy) -> torch.Tensor:
    x_NZ = torch.randn(2, *policy.family.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.family.velocity(x_NZ, torch.full((2,), 0.5), policy.family.encode(["a cat", "a dog"]))


@EVERY_FAMILY
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_a_merged_policy_has_the_same_velocity_and_its_base_keeps_its_bits(case, tiny_folder, dtype, tolerance):
    policy = Policy(tiny_settings(tiny_folder(case), dtype=dtype, **case.settings), 0)
    stir(policy)
    before = {name: tensor.clone() for name, tensor in policy.transformer.state_dict().items()}
    apart = velocity(policy)
    with policy.base():
        base = velocity(policy)
    with policy.merged():
        merged = velocity(policy)
        changed = [name for name, tensor in policy.transformer.state_dict().items() if not tensor.equal(before[name])]
        assert changed
    far = (apart - base).norm()
    assert far > 0.01 * base.norm()
    assert (merged - apart).norm() < tolerance * far
    assert all(tensor.equal(before[name]) for name, tensor in policy.transformer.state_dict().items())
    assert velocity(policy).equal(apart)


def test_the_base_keeps_its_bits_when_sampling_fails(sd3_folder):
    policy = Policy(tiny_settings(sd3_folder), 0)
    stir(policy)
    before = velocity(policy)
    with pytest.raises(KeyError), policy.merged():
        raise KeyError
    assert velocity(policy).equal(before)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_first_ratio_is_exactly_one_where_the_rollout_is_merged(sd3_folder, dtype):
    policy = Policy(tiny_settings(sd3_folder, dtype=dtype), 0)
    stir(policy)
    learner = learner_of(sd3_folder, GrpoSettings(), LearnerSettings(lr=1e-3, micro_batch=3, max_drift=10), dtype=dtype)
    learner.policy.load(policy.arrays())
    plan, images = make_plan(TrunkSettings(seeds=2, explorations=3), 5), {}
    for merge in (False, True):
        generator = Generator(policy, FlowSDESettings(), RolloutSettings(micro_batch=8, merge_adapter=merge))
        generator.load(policy.export(0))
        decisions, images[merge], _ = generator.generate(Task(0, "a cat", (0, 0, 0), 0), plan)
    advantage = np.random.default_rng(0).normal(size=decisions.log_prob_NK.shape)
    stats = learner.update([(decisions, advantage)])
    assert stats.first_ratio_deviation == 0
    assert 0 < np.nanmax(stats.drift_mean) < (1e-4 if dtype == "fp32" else 0.05)
    assert not np.array_equal(images[False], images[True]) or dtype == "fp32"
