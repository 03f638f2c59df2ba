"""The models around the transformer, by their published shapes, with random weights and made-up inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLModel,
    T5Config,
    T5EncoderModel,
)

from services.scoring.hpsv3 import INSTRUCTION, LENGTH_STEP, PIXELS, reward_head
from system.bench.models import VAE

LATENT_CHANNELS, VAE_SCALE = 16, 8
CLIP_TOKENS, CLIP_PX = 77, 224
QWEN_TOKENS = 256
PATCH_PX, MERGE = 14, 2
CHARACTERS_A_TOKEN = 4
"""Of English text, about: it gives the length of HPSv3's instruction without its tokenizer."""

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_H_VISION = CLIP_G | {"num_attention_heads": 16, "patch_size": PATCH_PX}
"""PickScore's CLIP is laion/CLIP-ViT-H-14-laion2B-s32B-b79K."""
T5_XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24}
QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
"""The language model of Qwen2.5-VL-7B, which encodes Qwen-Image's prompts, and of Qwen2-VL-7B, HPSv3's base."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Neighbour:
    """A model, and what a run calls it with."""

    build: Callable[[dict[str, Any]], nn.Module]
    """Takes changes of the sizes, which are empty for the published shapes."""
    small: dict[str, Any]
    """The changes for a CPU."""
    dtype: torch.dtype
    """Of the weights, as a run has them."""
    inputs: Callable[[int, int], Inputs]
    """For so many rows and images of so many pixels a side."""
    of: str
    """What a row is: a prompt or an image."""

    def make(self, device: torch.device, small: bool) -> nn.Module:
        """The model on the device; a small one in fp32, since some CPUs take seconds for a product in bf16."""
        torch.manual_seed(0)
        standard = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32 if small else self.dtype)
        try:
            with torch.device(device):
                return self.build(self.small if small else {}).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(standard)


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
    shown = side * side // MERGE**2
    text = len(INSTRUCTION.read_text()) // CHARACTERS_A_TOKEN
    length = -(-(shown + text) // LENGTH_STEP) * LENGTH_STEP
    ids_BL = torch.randint(1, 1000, (rows, length))
    ids_BL[:, :shown] = config.image_token_id
    width = 3 * config.vision_config.temporal_patch_size * PATCH_PX**2
    return {
        "input_ids": ids_BL,
        "position_ids": torch.arange(length).expand(3, rows, length),
        "pixel_values": torch.randn(rows * side * side, width),
        "image_grid_thw": torch.tensor([[1, side, side]] * rows),
    }


def _clip(changes: dict[str, Any]) -> nn.Module:
    text, vision = CLIP_H | changes, CLIP_H_VISION | changes
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=CLIP_H["hidden_size"]))


def _text(sizes: dict[str, Any], changes: dict[str, Any]) -> nn.Module:
    config = CLIPTextConfig(**(sizes | changes), projection_dim=sizes["hidden_size"])
    return CLIPTextModelWithProjection(config)


def _hpsv3(changes: dict[str, Any]) -> nn.Module:
    sizes = QWEN_7B | changes
    vision: dict[str, Any] = {"hidden_size": sizes["hidden_size"]} | ({"depth": 1} if changes else {})
    return HPSv3Forward(Qwen2VLConfig(text_config=sizes, vision_config=vision))


def _qwen_text(changes: dict[str, Any]) -> nn.Module:
    sizes = QWEN_7B | changes
    vision: dict[str, Any] = {"hidden_size": 1280, "out_hidden_size": sizes["hidden_size"]}
    vision |= {"depth": 1} if changes else {}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=sizes, vision_config=vision))


FEW_LAYERS = {"num_hidden_layers": 1}
NARROW = {"num_hidden_layers": 1, "hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
THIN = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}

NEIGHBOURS = {
    "VAE of SD3 and FLUX.1, fp32": Neighbour(
        lambda changes: Decoder(AutoencoderKL(**(VAE | changes))), THIN, torch.float32, _latents, "image"
    ),
    "VAE of SD3 and FLUX.1, bf16": Neighbour(
        lambda changes: Decoder(AutoencoderKL(**(VAE | changes))), THIN, torch.bfloat16, _latents, "image"
    ),
    "VAE of Qwen-Image, fp32": Neighbour(
        lambda changes: Decoder(AutoencoderKLQwenImage(**changes)),
        {"base_dim": 32, "num_res_blocks": 1},
        torch.float32,
        _frames,
        "image",
    ),
    "CLIP-L text": Neighbour(
        lambda changes: _text(CLIP_L, changes), FEW_LAYERS, torch.bfloat16, lambda n, _: _ids(n, CLIP_TOKENS), "prompt"
    ),
    "CLIP-G text": Neighbour(
        lambda changes: _text(CLIP_G, changes), FEW_LAYERS, torch.bfloat16, lambda n, _: _ids(n, CLIP_TOKENS), "prompt"
    ),
    "T5-XXL, 256 tokens": Neighbour(
        lambda changes: T5EncoderModel(T5Config(**(T5_XXL | changes), feed_forward_proj="gated-gelu")),
        {"num_layers": 1, "d_ff": 256, "d_model": 256},
        torch.bfloat16,
        lambda n, _: _ids(n, 256),
        "prompt",
    ),
    "Qwen2.5-VL-7B text, 256 tokens": Neighbour(
        _qwen_text, NARROW, torch.bfloat16, lambda n, _: _ids(n, QWEN_TOKENS), "prompt"
    ),
    "PickScore": Neighbour(_clip, FEW_LAYERS, torch.float32, _pairs, "image"),
    "HPSv3": Neighbour(_hpsv3, NARROW, torch.bfloat16, _judged, "image"),
}
"""By name. The VAE runs in fp32; bf16 shows what that costs."""
