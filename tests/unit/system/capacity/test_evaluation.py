"""The time of evaluation follows the settings of held-out images."""

from dataclasses import replace

import pytest

from system.capacity.cards import CARDS
from system.capacity.estimate import estimate_of
from system.capacity.memory import processes
from system.recipe.load import load_config

CARD = replace(CARDS["H100"], matmul_fp32_tflops=0.05, memory_tb_per_s=0.003)
"""So slow that the miniature's models take longer than the CPU's part of scoring."""


def seconds(*overrides: str) -> float:
    return estimate_of(load_config("shapes", [*overrides]), 1, CARD).step.evaluation


def test_evaluation_costs_what_its_steps_sets_and_images_cost():
    plain = seconds()
    more = "eval.sets.again={prompts: package:system.miniature/assets/prompts/heldout.parquet}"
    assert seconds(more) == pytest.approx(2 * plain)
    assert seconds("data.heldout=null", more) == pytest.approx(plain)
    assert seconds("data.heldout=null") == 0
    assert seconds("eval.images_per_prompt=2") > 1.5 * plain
    assert seconds("eval.num_steps=20") > 1.5 * plain
    assert seconds("eval.height=32", "eval.width=32") < plain
    assert seconds("eval.guidance=4") > 1.5 * plain


def test_larger_held_out_images_need_their_memory():
    def phases(*overrides: str) -> dict[str, float]:
        (rollout,) = (one for one in processes(load_config("shapes", [*overrides])) if one.role == "rollout")
        return rollout.phases

    assert "sampling held-out images" not in phases("eval.num_steps=20")
    larger = phases("eval.height=32", "eval.width=32")
    assert larger["decoding held-out images"] < larger["decoding"]
    guided = phases("eval.guidance=4")
    assert guided["sampling held-out images"] > 0
