"""A transformer's files are compared with its class before anything is loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.policy.loading import check_loads
from services.base.errors import UserError
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_a_models_files_hold_what_its_class_needs(case, tiny_folder):
    check_loads(tiny_settings(tiny_folder(case), **case.settings))


def drop(tensors: dict) -> dict:
    return {name: value for name, value in tensors.items() if name != "norm_out.linear.bias"}


def widen(tensors: dict) -> dict:
    return tensors | {"norm_out.linear.bias": torch.zeros(77)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop, "lack the weight norm_out.linear.bias; copy them again"),
        (widen, r"norm_out.linear.bias in `.*` has the shape \(77,\), but config.json gives it \(32,\)"),
    ],
)
def test_a_weight_that_is_missing_or_of_another_model_is_found_without_loading(sd3_folder, tmp_path, change, says):
    folder = tmp_path / "model"
    shutil.copytree(sd3_folder, folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    with pytest.raises(UserError, match=says):
        check_loads(tiny_settings(folder))


def test_a_config_that_makes_no_model_is_named(sd3_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(sd3_folder, folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": "two"}))
    with pytest.raises(UserError, match="does not fit SD3Transformer2DModel"):
        check_loads(tiny_settings(folder))
