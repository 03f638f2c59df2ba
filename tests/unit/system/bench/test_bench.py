"""The benchmarks compare equal work; what they measure is not tested."""

import pytest
import torch

from actors.policy.policy import Policy
from actors.rollout.plans.settings import ChainSettings
from services.base.errors import UserError
from system.bench.completions import bench_completions
from system.bench.learner import bench_learner
from system.bench.measure import flops_of
from system.bench.run import bench_table, run_bench
from system.bench.sampler import bench_sampler
from system.recipe.load import parse_config
from system.recipe.model import RunConfig
from tests.helpers.tiny import tiny_settings


@pytest.fixture
def config(sd3_folder):
    return parse_config(
        RunConfig,
        {
            "name": "bench",
            "steps": 1,
            "policy": tiny_settings(sd3_folder, guidance=4.5).model_dump(),
            "plan": {"seeds": 2, "explorations": 3},
            "rollout": {"micro_batch": 8},
            "learner": {"micro_batch": 3},
            "scorers": [{"name": "size", "scorer": "jpeg_size"}],
            "data": {"train": "prompts.txt"},
        },
        "test",
    )


def test_both_samplers_make_the_same_leaves_at_the_same_cost(config):
    policy = Policy(config.policy, seed=0)
    figures = bench_sampler(config, policy, policy.family.encode(["a cat"]), rounds=1)
    assert figures["max_difference"] < 1e-5
    assert figures["reference"]["rows_padded"] == 0
    assert figures["wavefront"]["forwards"] < figures["reference"]["forwards"] == 2 * (4 + 10)
    assert 0 < figures["wavefront"]["share_inside_transformer"] <= 1
    assert bench_table("sampler", figures).row_count


def test_both_learners_take_the_same_gradient(config):
    policy = Policy(config.policy, seed=0)
    figures = bench_learner(config, policy, policy.family.encode(["a cat"]), rounds=1)
    shared, apart = figures["one forward a decision"], figures["one forward a branch"]
    assert shared["grad_norm"] == pytest.approx(apart["grad_norm"], rel=1e-4)
    assert figures["decisions"] == 2 * 4


def test_flops_of_a_matrix_product():
    left, right = torch.randn(3, 5), torch.randn(5, 7)
    assert flops_of(lambda: left @ right) == 2 * 3 * 5 * 7


def test_what_cannot_be_measured_is_named(config):
    from rich.console import Console

    for kind, family, simulate, message in (
        ("speed", None, False, "no benchmark"),
        ("sampler", "sd9", False, "sd9"),
        ("pipeline", "flux-dev", False, "recipe"),
        ("sampler", None, True, "--simulate"),
    ):
        with pytest.raises(UserError, match=message):
            run_bench(kind, config, family, 1, simulate, Console())
    chain = config.model_copy(update={"plan": ChainSettings()})
    with pytest.raises(UserError, match="whole trunk"):
        run_bench("learner", chain, None, 1, False, Console())


def test_full_completions_rank_as_themselves_and_signals_are_relative_to_the_whole_plan(config, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    data = config.data.model_copy(update={"train": str(prompts), "prompts_per_step": 2})
    policy = config.policy.model_copy(update={"guidance": 1.0})  # half the forwards
    figures = bench_completions(config.model_copy(update={"data": data, "policy": policy}), rounds=1)
    full, one_step = figures["euler, stride 1"], figures["euler, stride 100"]
    assert [full[f"rank correlation, step {i}"] for i in range(4)] == pytest.approx([1] * 4)
    assert full["signal an NFE, 4 steps"] == 1
    assert one_step["rank correlation, step 3"] == pytest.approx(1)
    assert one_step["nfe_a_task"] < full["nfe_a_task"]
    assert figures["prompts"] == 2
