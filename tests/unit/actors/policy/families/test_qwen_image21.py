"""Qwen-Image 2.1: our forward of fixed layout against diffusers' own, independent rows, opacity."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import QwenImage21Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

from actors.policy.families.block_causal import rotary_embedding
from actors.policy.families.qwen_image21 import TextToImagePipeline
from actors.policy.policy import Policy
from services.base.errors import UserError
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import tiny_settings

(CASE,) = (case for case in FAMILIES if str(case) == "QwenImage21")
PROMPTS = ["a red cat", "a much longer prompt of a dog"]


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return tiny_folder(CASE)


@pytest.fixture(scope="module")
def family(folder):
    return Policy(tiny_settings(folder, **CASE.settings), 0).family


@pytest.fixture(scope="module")
def stock(folder):
    return QwenImage21Transformer2DModel.from_pretrained(folder / "transformer")


def rows_of(family, count: int) -> torch.Tensor:
    return torch.randn(count, *family.latent_shape, generator=torch.Generator().manual_seed(0))


def lengths(conditioning) -> list[int]:
    return [int(length) for length in conditioning["mask"].sum(1)]


@torch.no_grad()
def test_a_row_is_the_stock_forward_of_its_prompt_with_and_without_kept_keys(family, stock):
    """Keys and values of the text are kept from σ = 0.9 and used at 0.4, so they do not depend on the step."""
    x_NZ, conditioning = rows_of(family, 2), family.encode(PROMPTS)
    assert len(set(lengths(conditioning))) == 2
    ours = {at: family.velocity(x_NZ, torch.full((2,), at), conditioning) for at in (0.9, 0.4)}
    for row, length in enumerate(lengths(conditioning)):
        given = {
            "hidden_states": x_NZ[[row]],
            "encoder_hidden_states": conditioning["prompt"][[row], :length],
            "img_shapes": [[(1, *family.token_grid)]],
            "img_mask": torch.tensor([[False] * length + [True] * (len(x_NZ[row]) // 4)]),
            "return_dict": False,
        }
        cache = QwenImage21KVCache(len(stock.transformer_blocks))
        for at, mode in ((0.9, "extract"), (0.4, "cached")):
            time = torch.tensor([at])
            whole = stock(timestep=time, **given)[0][:, length:]
            kept = stock(timestep=time, kv_cache=cache, kv_cache_mode=mode, **given)[0][:, -len(x_NZ[row]) :]
            torch.testing.assert_close(ours[at][[row]], whole, rtol=0, atol=1e-5)
            torch.testing.assert_close(ours[at][[row]], kept, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_row_has_the_same_bits_beside_any_other(family):
    x_NZ, conditioning = rows_of(family, 2), family.encode(["a red cat", PROMPTS[1]])
    other = family.encode(["a red cat", "b"])
    first, second = (family.velocity(x_NZ, torch.tensor([0.5, 0.5]), rows) for rows in (conditioning, other))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


@torch.no_grad()
def test_more_padding_changes_nothing(family):
    x_NZ, conditioning = rows_of(family, 2), family.encode(PROMPTS)
    longer = {"prompt": torch.nn.functional.pad(conditioning["prompt"], (0, 0, 0, 7), value=3.0)}
    longer["mask"] = torch.nn.functional.pad(conditioning["mask"], (0, 7))
    both = (family.velocity(x_NZ, torch.full((2,), 0.5), rows) for rows in (conditioning, longer))
    torch.testing.assert_close(*both, rtol=0, atol=1e-6)


def test_positions_are_those_of_the_models_own_table(stock):
    text, grid = 5, (4, 2)
    cos, sin = rotary_embedding(stock.pos_embed, text, torch.tensor([5.0]), grid)
    is_image = torch.tensor([False] * text + [True] * 8)
    table = stock.pos_embed([(1, *grid)], is_image, torch.device("cpu"))
    torch.testing.assert_close(torch.complex(cos, sin)[0, :, 0], table, rtol=0, atol=1e-6)


@torch.no_grad()
def test_transparent_pixels_are_shown_on_white(family, monkeypatch):
    """Grey at 0.2 with opacity 1, ¾, 0 and beyond both ends."""
    opacity = torch.tensor([1.0, 0.5, -1.0, 1.3, -1.3])
    pixels = torch.cat([torch.full((5, 3), 0.2), opacity[:, None]], 1)[..., None, None, None]
    monkeypatch.setattr(family.pipe.vae, "decode", lambda latent, return_dict: (pixels,))
    shown = family.decode(rows_of(family, 5))
    assert shown.shape == (5, 3, 1, 1)
    np.testing.assert_allclose(shown[:, 0, 0, 0], [0.2, 0.2 * 0.75 + 0.25, 1.0, 0.2, 1.0], atol=1e-6)


def test_a_model_with_noise_levels_of_its_own_is_sampled_at_them_alone(folder, tmp_path):
    levels = [1.0, 0.9, 0.6, 0.3]
    shutil.copytree(folder, tmp_path / "model")
    for file, changes in (
        ("model_index.json", {"sample_sigmas": levels}),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": False, "shift_terminal": None}),
    ):
        path = tmp_path / "model" / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    settings = tiny_settings(tmp_path / "model", **CASE.settings | {"num_steps": 4})
    assert Policy(settings, 0).sigmas.tolist() == pytest.approx([*levels, 0.0])
    with pytest.raises(UserError, match=r"policy\.num_steps: this model samples in 4 steps of its own, not 5; set"):
        Policy(settings.model_copy(update={"num_steps": 5}), 0)


def test_a_learner_loads_neither_text_encoder_nor_processor(folder):
    pipe = Policy(tiny_settings(folder, **CASE.settings), 0, "transformer").family.pipe
    assert isinstance(pipe, TextToImagePipeline)
    assert pipe.text_encoder is pipe.vae is None


def test_a_prompt_beyond_the_length_loses_its_end(folder, family):
    short = Policy(tiny_settings(folder, **CASE.settings | {"max_sequence_length": 9}), 0).family.encode(PROMPTS)
    assert lengths(short) == [9, 9]
    torch.testing.assert_close(short["prompt"], family.encode(PROMPTS)["prompt"][:, :9])
