"""What is known of a model before it is loaded: its family, and the sizes that it can make."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.policy.families import check_size, pipeline_name, vae_scale
from actors.policy.loading import check_loads
from actors.policy.policy import Policy
from actors.policy.qwen_image21 import QwenImage21
from services.base.errors import UserError
from system.recipe.load import load_config
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_a_size_that_is_no_whole_number_of_tokens_is_refused_with_the_nearest_ones(case, tiny_folder):
    """The grid is where the loaded model's own latent stops losing pixels."""
    folder = tiny_folder(case)
    settings = tiny_settings(folder, **case.settings)
    check_size(settings)
    family = Policy(settings, seed=0).family
    grid = settings.height // _tokens_down(family)
    check_size(settings.model_copy(update={"height": grid}))
    for side, size, near in (("height", grid + 1, f"{grid} and {2 * grid}"), ("width", grid - 1, f"{grid} at least")):
        with pytest.raises(UserError, match=rf"^policy\.{side}: {size} is not a multiple of {grid}, .*; try {near}$"):
            check_size(settings.model_copy(update={side: size}))


def _tokens_down(family) -> int:
    """Tokens along the height of an image, by the loaded model."""
    if isinstance(family, QwenImage21):
        return family.token_grid[0] // 2  # its pipeline takes pairs of tokens
    if hasattr(family, "token_grid"):
        return family.token_grid[0]
    config = family.transformer.config
    return family.latent_shape[1] // (config.get("patch_size") or config.all_patch_size[0])


def test_a_size_beyond_the_models_positions_is_refused(sd3_folder):
    """The tiny model has positions for 8 tokens of 4 pixels; the model itself refuses 36."""
    check_size(tiny_settings(sd3_folder, height=32))
    with pytest.raises(UserError, match=r"policy\.height: 36 is more than 32, the most this model has positions for"):
        check_size(tiny_settings(sd3_folder, height=36))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "names no pipeline; give a model in diffusers' layout"),
        ('{"_class_name": 3}', "names no pipeline"),
        ("[]", "is not a JSON object"),
        ('{"_class_name": ', "is not JSON"),
        ('{"_class_name": "Kolors"}', "is a Kolors, which is not supported; give one of StableDiffusion3Pipeline"),
    ],
)
def test_a_model_index_that_says_nothing_is_named(sd3_folder, tmp_path, text, message):
    folder = tmp_path / "model"
    shutil.copytree(sd3_folder, folder)
    (folder / "model_index.json").write_text(text)
    with pytest.raises(UserError, match=rf"^policy\.model: .*{message}"):
        check_size(tiny_settings(folder))


def test_the_scale_of_a_vae_is_that_of_its_config(sd3_folder):
    assert pipeline_name(str(sd3_folder)) == "StableDiffusion3Pipeline"
    assert vae_scale(json.loads((sd3_folder / "vae" / "config.json").read_text())) == 2
    assert vae_scale({"temperal_downsample": [False, True, True]}) == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=18446744073709551616", "`seed` = 18446744073709551616: input should be less than 9223372036854775808"),
        ("rollout.num_gpus=1.5", "`rollout.num_gpus` = 1.5: .*a fraction of one GPU or whole ones"),
        ("scorers.0.num_gpus=2.5", "a fraction of one GPU or whole ones"),
        ("learner.betas=[2, 3]", r"`learner.betas.0` = 2: input should be less than 1"),
        ("steps=true", "`steps` = True: input should be a valid integer"),
        ('steps="3"', "`steps` = '3': input should be a valid integer"),
        ("policy.compile=1", "`policy.compile` = 1: input should be a valid boolean"),
        ("scorers.²=3", "`scorers` has no `²` to set"),
        ("name=" + "x" * 300, "at most 100 characters"),
    ],
)
def test_numbers_have_their_kind_and_bounds(override, message):
    with pytest.raises(UserError, match=message):
        load_config("shapes", [override])


def test_whole_and_fractional_gpus_are_taken():
    config = load_config("shapes", ["rollout.num_gpus=2", "learner.num_gpus=0.25"])
    assert (config.rollout.num_gpus, config.learner.num_gpus) == (2, 0.25)


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
