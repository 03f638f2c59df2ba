"""Checks of a recipe: what each accepts, and the sentence with which it refuses."""

import json
import socket

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from actors.policy.policy import Policy
from actors.policy.trained import LORA_FILE
from services.base.errors import UserError
from system.checks import recipe
from system.checks.checks import By, refuse
from system.recipe.load import load_config
from tests.helpers.tiny import tiny_settings


@pytest.mark.parametrize(
    ("overrides", "command", "refused"),
    [
        (["policy.device=cuda"], By.TRAIN, r"rollout\.num_gpus and learner\.num_gpus = 0"),
        (["policy.device=cuda", "rollout.num_gpus=1"], By.TRAIN, r"but learner\.num_gpus = 0"),
        (["policy.device=cuda", "rollout.num_gpus=1"], By.EVAL, None),
        (["policy.device=cuda"], By.EVAL, r"but rollout\.num_gpus = 0"),
        (["policy.device=cuda", "rollout.num_gpus=1", "placement=colocated"], By.TRAIN, None),
        (["policy.device=cuda", "learner.num_gpus=1", "placement=colocated", "rollout.workers=1"], By.TRAIN, None),
        (
            ["policy.device=cuda", "learner.num_gpus=1", "placement=colocated"],
            By.TRAIN,
            r"the workers beyond learner\.ranks",
        ),
        (["scorers.0.options.device=gpu"], By.TRAIN, r"options\.device `gpu`: it must be auto, cpu, cuda or cuda:N"),
        (["policy.device=cuda", "placement=colocated"], By.TRAIN, r"the workers beyond learner\.ranks"),
        (["policy.device=cuda", "placement=colocated", "rollout.workers=1"], By.TRAIN, r"and learner\.num_gpus = 0"),
        (["policy.device=auto"], By.TRAIN, None),
        (["scorers.0.options.device=cuda"], By.EVAL, r"scorer `pickscore`: options\.device is cuda but num_gpus is 0"),
        (["scorers.0.options.device=cuda", "scorers.0.num_gpus=0.1"], By.EVAL, None),
    ],
)
def test_a_role_that_is_to_use_a_gpu_must_ask_for_one(monkeypatch, overrides, command, refused):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # whose nodes may have the GPUs
    monkeypatch.setattr("system.checks.machine.check_start", lambda: None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = load_config("shapes", overrides)
    if refused is None:
        refuse(config, command)
    else:
        with pytest.raises(UserError, match=refused):
            refuse(config, command)


def test_each_scorer_is_tried():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    far = {"name": "far", "scorer": "remote", "options": {"url": nobody, "scorer": "size"}}
    config = load_config("shapes", [f"scorers=[{{name: size, scorer: jpeg_size}}, {json.dumps(far)}]"])
    size, lost = recipe.scores(config)
    assert (size.level, size.what) == ("ok", "score of size")
    assert "for a grey image; loaded in" in size.says
    assert (lost.level, nobody in lost.says) == ("problem", True)


def test_an_adapter_that_is_torn_or_not_finite_is_refused(sd3_folder, tmp_path):
    Policy(tiny_settings(sd3_folder), seed=0).save(tmp_path)
    lora = tiny_settings(sd3_folder).lora
    config = load_config(
        "shapes",
        [
            f"policy.model={sd3_folder}",
            f"policy.lora={{rank: {lora.rank}, alpha: {lora.alpha}}}",
            f"policy.adapter={tmp_path}",
        ],
    )
    assert [finding.level for finding in recipe.adapter(config)] == ["ok"]
    file = tmp_path / LORA_FILE
    arrays = load_file(file)
    next(iter(arrays.values()))[0, 0] = np.nan
    save_file(arrays, file)
    with pytest.raises(UserError, match="holds NaN or infinity"):
        list(recipe.adapter(config))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match="is torn or not a safetensors file"):
        list(recipe.adapter(config))
