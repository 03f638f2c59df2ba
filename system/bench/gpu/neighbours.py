"""The models around the transformer, by their published shapes, with random weights and made-up inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Qwen2VLConfig, Qwen2VLModel

from actors.policy.loading import default_dtype
from services.scoring.hpsv3 import PIXELS, reward_head
from system.capacity.architecture import KNOWN, architecture, build_part, read_config
from system.capacity.scorers import hpsv3_tokens

SD35, QWEN_IMAGE = "stabilityai/stable-diffusion-3.5-medium", "Qwen/Qwen-Image"
LATENT_CHANNELS, VAE_SCALE = 16, 8
CLIP_TOKENS, CLIP_PX = 77, 224
LONG_TOKENS = 256
PATCH_PX = 14
CLIP_H = read_config(KNOWN / "yuvalkirstain/PickScore_v1")
QWEN2_VL = read_config(KNOWN / "Qwen/Qwen2-VL-7B-Instruct")
"""The shapes of PickScore and of HPSv3's base."""
FEW_LAYERS = {"num_hidden_layers": 1}
NARROW = FEW_LAYERS | {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}

Changes = dict[str, Any]
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Neighbour:
    """A model, and what a run calls it with."""

    build: Callable[[torch.device, torch.dtype, bool], nn.Module]
    """Makes the model on a device in a dtype, small for a CPU or as published."""
    dtype: torch.dtype
    """The number type of the weights in a run."""
    inputs: Callable[[int, int], Inputs]
    """Makes up inputs: the number of rows, and the pixels of an image's side."""
    of: str
    """What a row is: a prompt or an image."""

    def make(self, device: torch.device, small: bool) -> nn.Module:
        """The model, ready to run; a small one in fp32, since some CPUs take seconds for a product in bf16."""
        torch.manual_seed(0)
        model = self.build(device, torch.float32 if small else self.dtype, small)
        return model.eval().requires_grad_(False)


class Decoder(nn.Module):
    """The half of a VAE that makes images of latents."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        decode: Any = self.vae.decode
        return decode(latent, return_dict=False)[0]


class HPSv3Forward(nn.Module):
    """HPSv3's Qwen2-VL with its fp32 head, as `services.scoring.hpsv3` calls them."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.model = Qwen2VLModel(config)
        self.head = reward_head(config.text_config.hidden_size).float()

    def forward(self, **inputs: Tensor) -> Tensor:
        hidden_BLD = self.model(**inputs, use_cache=False).last_hidden_state
        return self.head(hidden_BLD[:, -1].float())


def _ids(rows: int, tokens: int) -> Inputs:
    """Made-up tokens, the last of which is the largest, where CLIP reads its pooled row."""
    ids_BL = torch.randint(1, 1000, (rows, tokens))
    ids_BL[:, -1] = 1001
    return {"input_ids": ids_BL}


def _latents(rows: int, side_px: int) -> Inputs:
    return {"latent": torch.randn(rows, LATENT_CHANNELS, side_px // VAE_SCALE, side_px // VAE_SCALE)}


def _frames(rows: int, side_px: int) -> Inputs:
    return {"latent": _latents(rows, side_px)["latent"].unsqueeze(2)}


def _pairs(rows: int, _: int) -> Inputs:
    ids = _ids(rows, CLIP_TOKENS)
    pixels = torch.randn(rows, 3, CLIP_PX, CLIP_PX)
    return {**ids, "attention_mask": torch.ones_like(ids["input_ids"]), "pixel_values": pixels}


def _judged(rows: int, _: int) -> Inputs:
    """An image of HPSv3's size and a text of its instruction's length in each row."""
    config = Qwen2VLConfig()
    side = int(PIXELS**0.5) // PATCH_PX
    shown, length = hpsv3_tokens()
    ids_BL = torch.randint(1, 1000, (rows, length))
    ids_BL[:, :shown] = config.image_token_id
    width = 3 * config.vision_config.temporal_patch_size * PATCH_PX**2
    return {
        "input_ids": ids_BL,
        "position_ids": torch.arange(length).expand(3, rows, length),
        "pixel_values": torch.randn(rows * side * side, width),
        "image_grid_thw": torch.tensor([[1, side, side]] * rows),
    }


def _part(
    model: str, part: str, small_changes: Changes, device: torch.device, dtype: torch.dtype, small: bool
) -> nn.Module:
    built = build_part(architecture(model), part, device, dtype, small_changes if small else None)
    return Decoder(built) if part == "vae" else built


def _pickscore(device: torch.device, dtype: torch.dtype, small: bool) -> nn.Module:
    config = _changed(CLIP_H, text_config=FEW_LAYERS, vision_config=FEW_LAYERS) if small else CLIP_H
    with device, default_dtype(dtype):
        return CLIPModel(CLIPConfig.from_dict(config))


def _hpsv3(device: torch.device, dtype: torch.dtype, small: bool) -> nn.Module:
    config = _changed(QWEN2_VL, text_config=NARROW, vision_config={"depth": 1, "hidden_size": 256})
    with device, default_dtype(dtype):
        return HPSv3Forward(Qwen2VLConfig.from_dict(config if small else QWEN2_VL))


def _changed(config: Changes, **changes: Changes) -> Changes:
    """A configuration with other values in its inner ones."""
    return config | {name: config[name] | inner for name, inner in changes.items()}


def _sd35(part: str, **small_changes: Any) -> Callable[[torch.device, torch.dtype, bool], nn.Module]:
    return partial(_part, SD35, part, small_changes)


SMALL_QWEN = _changed(
    read_config(KNOWN / QWEN_IMAGE / "text_encoder"),
    text_config=NARROW,
    vision_config={"depth": 1, "hidden_size": 1280, "out_hidden_size": 256},
)
VAE = _sd35("vae", block_out_channels=(32, 32, 32, 32), layers_per_block=1)
QWEN_VAE = partial(_part, QWEN_IMAGE, "vae", {"base_dim": 32, "num_res_blocks": 1})
QWEN_TEXT = partial(_part, QWEN_IMAGE, "text_encoder", SMALL_QWEN)
CLIP_IDS, LONG_IDS = (lambda rows, _, tokens=n: _ids(rows, tokens) for n in (CLIP_TOKENS, LONG_TOKENS))
FP32, BF16 = torch.float32, torch.bfloat16

NEIGHBOURS = {
    "VAE of SD3 and FLUX.1, fp32": Neighbour(VAE, FP32, _latents, "image"),
    "VAE of SD3 and FLUX.1, bf16": Neighbour(VAE, BF16, _latents, "image"),
    "VAE of Qwen-Image, fp32": Neighbour(QWEN_VAE, FP32, _frames, "image"),
    "CLIP-L text": Neighbour(_sd35("text_encoder", **FEW_LAYERS), BF16, CLIP_IDS, "prompt"),
    "CLIP-G text": Neighbour(_sd35("text_encoder_2", **FEW_LAYERS), BF16, CLIP_IDS, "prompt"),
    "T5-XXL, 256 tokens": Neighbour(_sd35("text_encoder_3", num_layers=1, d_ff=256), BF16, LONG_IDS, "prompt"),
    "Qwen2.5-VL-7B text, 256 tokens": Neighbour(QWEN_TEXT, BF16, LONG_IDS, "prompt"),
    "PickScore": Neighbour(_pickscore, FP32, _pairs, "image"),
    "HPSv3": Neighbour(_hpsv3, BF16, _judged, "image"),
}
"""The models by name. A run has the VAE in fp32; the row in bf16 shows what that costs."""
