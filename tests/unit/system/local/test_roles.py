"""A run in one process: the same bits for both placements and after a resume, for each family; and without Ray."""

import json

import numpy as np
import pytest
from diffusers import Flux2Pipeline, FluxPipeline

from services.base.errors import UserError
from services.scoring.settings import ScorerSettings
from system.checks.checks import By, refuse
from system.local.roles import LocalRewards
from system.recipe.load import load_config
from tests.helpers.families import FAMILIES
from tests.helpers.recipes import tiny_recipe
from tests.helpers.training import checkpoint_files, trained_locally


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_a_family_trains_with_the_same_bits_in_both_placements_and_after_a_resume(case, tiny_folder, tmp_path):
    recipe = tiny_recipe(tiny_folder(case), tmp_path)
    settings = [f"policy.{key}={value}" for key, value in case.settings.items()]

    def run(name: str, *overrides: str, resume: bool = False):
        guidance = f"policy.guidance={case.guidances[-1]}"
        return trained_locally(
            load_config(str(recipe), [f"name={name}", "steps=2", guidance, *settings, *overrides]), resume
        )

    split = run("split")
    run("halves", "steps=1")
    files = checkpoint_files(split, 2)
    assert {"trained.safetensors", "ema.safetensors", "optimizer.safetensors"} <= files.keys()
    assert files == checkpoint_files(run("colocated", "placement=colocated"), 2)
    assert files == checkpoint_files(run("halves", resume=True), 2)
    last = json.loads((split / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["ratio/first_deviation"] == 0
    assert last["drift/max"] < 1e-4
    doubled = 1 if case.pipeline in (FluxPipeline, Flux2Pipeline) else 2
    assert last["nfe/generate"] == 3 * 2 * (3 + 3 * 6) * doubled
    assert (split / "lora" / "pytorch_lora_weights.safetensors").exists()


def test_every_weight_trains_with_the_same_bits_after_a_resume(sd3_folder, tmp_path):
    recipe = tiny_recipe(sd3_folder, tmp_path)
    full = ["policy.lora=null", "learner.lr=1e-4", "policy.dtype=bf16", "learner.max_drift=1", "objective.kl=0.01"]
    whole = trained_locally(load_config(str(recipe), ["name=whole", *full]))
    trained_locally(load_config(str(recipe), ["name=halves", "steps=2", *full]))
    halves = trained_locally(load_config(str(recipe), ["name=halves", *full]), resume=True)
    assert checkpoint_files(whole, 4) == checkpoint_files(halves, 4)
    assert (whole / "transformer" / "config.json").exists()


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_run_ahead_of_its_learner_continues_with_the_same_bits(sd3_folder, tmp_path, staleness):
    recipe = tiny_recipe(sd3_folder, tmp_path)
    ahead = f"learner.max_staleness={staleness}"
    whole = trained_locally(load_config(str(recipe), ["name=whole", ahead]))
    trained_locally(load_config(str(recipe), ["name=halves", "steps=2", ahead]))
    halves = trained_locally(load_config(str(recipe), ["name=halves", ahead]), resume=True)
    assert checkpoint_files(whole, 4) == checkpoint_files(halves, 4)
    in_step = trained_locally(load_config(str(recipe), ["name=in-step"]))
    assert checkpoint_files(whole, 4)["trained.safetensors"] != checkpoint_files(in_step, 4)["trained.safetensors"]


def test_several_ranks_are_refused():
    with pytest.raises(UserError, match=r"learner\.ranks: 2 ranks need one process each, but --local has only one"):
        refuse(load_config("shapes", ["learner.ranks=2"]), By.LOCAL)


class Counts:
    """A scorer that numbers the images it is given, and fails on those of the prompt `fail`."""

    def __call__(self, images_NHWC, prompts):
        if "fail" in prompts:
            raise OSError("the model file is missing")
        return np.array([float("inf") if prompt == "inf" else len(prompts) for prompt in prompts])


def test_a_scorer_gets_requests_of_its_size_and_one_that_fails_leaves_holes():
    settings = ScorerSettings(name="counts", scorer=f"{__name__}:Counts", request_images=2)
    rewards = LocalRewards([settings])
    prompts = ["a", "b", "fail", "c", "inf"]
    scores = rewards.score(np.zeros((5, 4, 4, 3), np.uint8), prompts, ["counts"], np.array([True, False, *[True] * 3]))
    np.testing.assert_array_equal(scores.result(0).by_scorer["counts"], [2, np.nan, np.nan, np.nan, np.nan])
    assert scores.result(0).errors == {"counts": "OSError: the model file is missing"}
    assert scores.result(0).not_finite == 1
    assert len(scores.result(0).latency_s["counts"]) == 2


class Grouped:
    """Scores by the place in the group; needs the number `n` of the row."""

    columns = ("n",)
    groupwise = True

    def __call__(self, images_NHWC, prompts, rows):
        return {"score": np.arange(len(prompts)), "n": [row["n"] for row in rows]}


def test_a_scorer_gets_rows_and_a_groupwise_one_all_images_at_once():
    settings = ScorerSettings(name="rank", scorer=f"{__name__}:Grouped", request_images=2)
    rewards = LocalRewards([settings])
    rows = [{"n": 7}, {"n": 8}, {"n": 9}]
    scores = rewards.score(np.zeros((3, 4, 4, 3), np.uint8), ["x"] * 3, ["rank"], np.ones(3, bool), rows).result(0)
    assert scores.by_scorer["rank"].tolist() == [0, 1, 2]
    assert scores.sub_scores["rank.n"].tolist() == [7, 8, 9]
