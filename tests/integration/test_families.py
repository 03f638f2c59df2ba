"""The whole job on every family, and what else is trained or placed in another way."""

import json

import numpy as np
import pytest
from diffusers import FluxPipeline

from tests.helpers.families import FAMILIES


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", FAMILIES[1:], ids=str)
def test_a_family_trains_from_its_folder_alone(case, recipe, tempflow, in_process, ray_head, tiny_folder, tmp_path):
    arguments = [f"policy.model={tiny_folder(case)}", f"policy.guidance={case.guidances[-1]}", "steps=2"]
    arguments += [f"policy.{key}={value}" for key, value in case.settings.items()]
    done = tempflow("train", recipe, *arguments, address=ray_head.address)
    assert done.returncode == 0, done.stderr
    last = lines(tmp_path / "runs" / "tiny")[-1]
    assert last["step"] == 2
    assert last["ratio/first_deviation"] == 0
    assert last["drift/max"] < 1e-4
    assert (tmp_path / "runs" / "tiny" / "lora" / "pytorch_lora_weights.safetensors").exists()
    dry = in_process("train", recipe, "--dry-run", *arguments)
    assert dry.returncode == 0, dry.stderr
    doubled = 1 if case.pipeline is FluxPipeline else 2
    assert last["nfe/generate"] == 3 * 2 * (3 + 3 * 6) * doubled


def test_colocated_roles_give_the_bits_of_split_ones(recipe, tempflow, ray_head, tmp_path):
    for placement in ("split", "colocated"):
        done = tempflow("train", recipe, f"name={placement}", f"placement={placement}", address=ray_head.address)
        assert done.returncode == 0, done.stderr
    split, colocated = (tmp_path / "runs" / name for name in ("split", "colocated"))
    for file in ("trained.safetensors", "ema.safetensors", "optimizer.safetensors"):
        left, right = (run / "checkpoints" / "step_000004" / file for run in (split, colocated))
        assert left.read_bytes() == right.read_bytes(), file
    assert [line["eval/size"] for line in lines(split) if "eval/size" in line] == [
        line["eval/size"] for line in lines(colocated) if "eval/size" in line
    ]


def test_every_weight_trains_and_the_run_resumes(recipe, tempflow, ray_head, tmp_path):
    full = ["policy.lora=null", "learner.lr=1e-4", "policy.dtype=bf16", "learner.max_drift=1", "objective.kl=0.01"]
    for arguments in (["name=whole"], ["name=halves", "steps=2"], ["name=halves", "--resume"]):
        done = tempflow("train", recipe, *full, *arguments, address=ray_head.address)
        assert done.returncode == 0, done.stderr
    whole, halves = (tmp_path / "runs" / name for name in ("whole", "halves"))
    left, right = (run / "checkpoints" / "step_000004" / "trained.safetensors" for run in (whole, halves))
    assert left.read_bytes() == right.read_bytes()
    found = tempflow("eval", recipe, *full, "--adapter", whole / "transformer", address=ray_head.address)
    assert found.returncode == 0, found.stderr
    assert "difference" in found.stdout
    assert np.isfinite(lines(whole)[-1]["loss"])
