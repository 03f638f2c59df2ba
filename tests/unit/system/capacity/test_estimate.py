"""What a step is said to cost, against the miniature itself."""

from pathlib import Path

import pytest
from diffusers import SD3Transformer2DModel

from actors.rollout.plans import make_plan
from services.base.paths import resolve_model
from system.capacity.estimate import estimate, steps_within
from system.capacity.in_flight import bytes_in_flight, task_image_bytes
from system.recipe.find import recipe_names
from system.recipe.load import load_config

RANKS = ["learner.ranks=4", "policy.dtype=bf16"]


def rows(*overrides: str) -> dict[str, tuple[str, ...]]:
    return {row[0]: row for row in estimate(load_config("shapes", overrides))}


@pytest.mark.parametrize(
    ("overrides", "bytes_each"),
    [
        (["policy.dtype=fp32"], 4),
        (["policy.dtype=bf16"], 2),
        (RANKS, 2),
        ([*RANKS, "learner.shard=true"], 2 / 4),
        ([*RANKS, "learner.shard=true", "policy.lora=null"], 4 / 4),
    ],
    ids=["fp32", "bf16", "whole on each rank", "sharded base", "sharded and trained: fp32"],
)
def test_the_learners_weights_are_those_of_a_process(overrides, bytes_each):
    folder = resolve_model(load_config("shapes").policy.model)
    count = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer").num_parameters()
    assert rows(*overrides)["learner"][-1] == f"{bytes_each * count / 1e6:,.1f}"
    assert float(rows(*overrides)["learner"][-1]) > 0.5


def test_a_scorer_without_a_model_has_no_weights(tmp_path, monkeypatch):
    (tmp_path / "other.safetensors").write_bytes(b"x" * 2**21)
    monkeypatch.chdir(tmp_path)
    assert rows("scorers=[{name: size, scorer: jpeg_size}]")["reward"][-1] == "?"
    judge = Path(resolve_model("package:system.miniature/assets/reward"))
    files = sum(path.stat().st_size for path in judge.rglob("*.safetensors"))
    assert rows()["reward"][-1] == f"{files / 1e6:,.1f}"


def test_images_and_trained_decisions_are_the_plans():
    """4 prompts, 4 seeds, the first 4 steps, 6 actions; the learner passes each decision 3 times."""
    found = rows()
    assert found["rollout"][3] == str(4 * 4 * 4 * 6)
    assert found["learner"][2] == str(4 * 4 * 4 * 3)


@pytest.mark.parametrize(
    ("staleness", "optimizer_steps", "first", "others"),
    [(0, 1, 4 * 400, 4 * 400), (1, 1, 4 * 400, 4 * 416), (0, 2, 4 * 408, 4 * 408), (4, 2, 4 * 408, 4 * 416)],
)
def test_a_budget_pays_for_the_learners_passes_too(staleness, optimizer_steps, first, others):
    """A prompt: 352 NFE of sampling, 3 passes of 16 decisions, and one to read old log-probs back where they are not
    the first optimizer step's own.
    """
    overrides = [f"learner.max_staleness={staleness}", f"objective.optimizer_steps={optimizer_steps}"]
    config = load_config("shapes", overrides)
    assert [steps_within(config, first + 9 * others - less) for less in (0, 1)] == [10, 9]


@pytest.mark.parametrize("recipe", recipe_names())
def test_images_in_flight_let_every_worker_work(recipe):
    config = load_config(recipe, ["rollout.max_workers=24"])
    task = task_image_bytes(config, make_plan(config.plan, config.policy.num_steps))
    assert bytes_in_flight(config) == 2 * 24 * task
    bounded = load_config(recipe, ["rollout.max_bytes_in_flight=5"])
    assert bytes_in_flight(bounded) == 5
