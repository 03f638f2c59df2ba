"""What is known of a model before it is loaded: its family, and the sizes that it can make."""

import json
import shutil

import pytest

from actors.policy.families.qwen_image21 import QwenImage21
from actors.policy.families.registry import check_size
from actors.policy.model_files import pipeline_name, vae_scale
from actors.policy.policy import Policy
from services.base.errors import UserError
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
