"""Every family: ρ = 1 before the first optimizer step, and equal tasks give equal decisions."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from actors.learner.settings import GrpoSettings, LearnerSettings
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from actors.trajectory import Task
from tests.helpers.families import FAMILIES
from tests.helpers.learners import PLAN, learner_of, tasks_of
from tests.helpers.tiny import tiny_settings

CASES = pytest.mark.parametrize(
    ("case", "guidance"), [(case, guidance) for case in FAMILIES for guidance in case.guidances], ids=str
)
BF16_TOLERANCE = 0.1
"""Of final latents with unit variance, between micro-batches of other sizes."""


@CASES
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer_steps", [1, 2])
def test_ratio_is_exactly_one_whatever_the_micro_batch(case, guidance, dtype, optimizer_steps, tiny_folder):
    changes = {"dtype": dtype, "guidance": guidance, **case.settings}
    batch = tasks_of(tiny_folder(case), **changes)
    for micro_batch in (1, 3, 16):
        settings = LearnerSettings(lr=1e-2, micro_batch=micro_batch, max_drift=1)
        learner = learner_of(
            tiny_folder(case), GrpoSettings(optimizer_steps=optimizer_steps, kl=0.01), settings, **changes
        )
        stats = learner.update(batch)
        assert stats.first_ratio_deviation == 0.0
        assert (stats.ratio_max_deviation == 0.0) == (optimizer_steps == 1)
        assert stats.grad_norm > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILIES, ids=str)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_ratio_is_exactly_one_with_a_compiled_model(case, dtype, tiny_folder):
    changes = {"dtype": dtype, "guidance": case.guidances[-1], "compile": True, **case.settings}
    batch = tasks_of(tiny_folder(case), count=2, **changes)
    settings = LearnerSettings(lr=1e-2, micro_batch=3, max_drift=1)
    stats = learner_of(tiny_folder(case), GrpoSettings(optimizer_steps=2), settings, **changes).update(batch)
    assert stats.first_ratio_deviation == 0.0
    assert stats.ratio_max_deviation > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILIES[:2], ids=str)
def test_a_compiled_model_gives_the_same_bits_whichever_shape_comes_first(case, tiny_folder):
    """With dynamic shapes, the second shape would get a graph that the first one does not have."""

    def velocities(*sizes: int) -> dict[int, torch.Tensor]:
        torch.compiler.reset()
        policy = Policy(tiny_settings(tiny_folder(case), compile=True, **case.settings), seed=0)
        conditioning, found = policy.family.encode(["a cat"]), {}
        for size in sizes:
            x_NZ = torch.randn(size, *policy.family.latent_shape, generator=torch.Generator().manual_seed(0))
            rows = {name: tensor.expand(size, *tensor.shape[1:]) for name, tensor in conditioning.items()}
            with torch.no_grad():
                found[size] = policy.family.velocity(x_NZ, torch.full((size,), 0.5), rows)
        return found

    counters.clear()
    first, second = velocities(2, 5), velocities(5, 2)
    assert all(torch.equal(first[size], second[size]) for size in (2, 5))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] >= 4


def generated(folder, micro_batch: int, **changes):
    policy = Policy(tiny_settings(folder, **changes), seed=0)
    generator = Generator(policy, FlowSDESettings(), RolloutSettings(micro_batch=micro_batch))
    generator.load(policy.export(0))
    return generator.generate(Task(0, "a red cat", (7, 0, 0), 0), PLAN)


@CASES
def test_equal_tasks_give_equal_bits(case, guidance, tiny_folder):
    changes = {"guidance": guidance, **case.settings}
    (one, images, *_), (two, others, *_) = (generated(tiny_folder(case), 8, **changes) for _ in range(2))
    assert np.array_equal(one.mean_NZ, two.mean_NZ)
    assert np.array_equal(one.log_prob_NK, two.log_prob_NK)
    assert np.array_equal(images, others)


@CASES
def test_another_micro_batch_in_bf16_stays_within_the_stated_tolerance(case, guidance, tiny_folder):
    changes = {"guidance": guidance, "dtype": "bf16", **case.settings}
    (one, *_), (two, *_) = (generated(tiny_folder(case), size, **changes) for size in (4, 16))
    first = one.step_N == 0
    np.testing.assert_array_equal(one.state_NZ[first], two.state_NZ[first])
    spread = np.abs(one.mean_NZ - two.mean_NZ).max()
    assert spread < BF16_TOLERANCE * one.mean_NZ.std()
