"""What the benchmarks run on: a recipe's own model, or one of full size with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from actors.policy.family import DTYPES, Conditioning, Family
from actors.policy.flux import Flux
from actors.policy.policy import Policy
from actors.policy.sd3 import SD3
from actors.policy.settings import PolicySettings
from services.base.devices import device_of

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
"""The shapes of FLUX.1's autoencoder; SD3's are the same."""


@dataclass(frozen=True)
class FullSize:
    """The shapes of a published model."""

    family: type[Family]
    pipeline: Any
    transformer: Any
    config: dict[str, Any]
    scheduler: dict[str, Any]
    guidance: float
    text_tokens: int
    pooled: int

    def build(self, settings: PolicySettings, with_vae: bool) -> Family:
        """Random weights, made on the device in the compute dtype."""
        device, dtype = device_of(settings.device), DTYPES[settings.dtype]
        torch.manual_seed(0)
        with torch.device(device):
            standard = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                transformer = self.transformer(**self.config)
            finally:
                torch.set_default_dtype(standard)
            vae = AutoencoderKL(**VAE) if with_vae else None
        names = self.pipeline._get_signature_keys(self.pipeline)[0]
        parts = dict.fromkeys(names) | {
            "transformer": transformer,
            "vae": vae,
            "scheduler": FlowMatchEulerDiscreteScheduler(**self.scheduler),
        }
        return self.family(settings, self.pipeline(**parts), VAE)

    def conditioning(self, family: Family) -> Conditioning:
        """Random embeddings of one prompt, of the shapes that the text encoders give."""
        shapes = {
            "prompt": (1, self.text_tokens, self.config["joint_attention_dim"]),
            "pooled": (1, self.pooled),
        }
        if family.guided:
            shapes |= {f"negative_{name}": shape for name, shape in shapes.items()}
        return {name: torch.randn(shape, device=family.device, dtype=family.dtype) for name, shape in shapes.items()}


FULL_SIZES = {
    "sd35-medium": FullSize(
        SD3,
        StableDiffusion3Pipeline,
        SD3Transformer2DModel,
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
        {"shift": 3.0},
        4.5,
        77 + 256,
        2048,
    ),
    "flux-dev": FullSize(
        Flux,
        FluxPipeline,
        FluxTransformer2DModel,
        {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
        },
        {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
        3.5,
        512,
        768,
    ),
}


def bench_policy(settings: PolicySettings, full_size: str | None, with_vae: bool) -> tuple[Policy, Conditioning]:
    """The policy and the embeddings of one prompt."""
    if full_size is None:
        policy = Policy(settings, seed=0)
        return policy, policy.family.encode(["a benchmark"])
    shapes = FULL_SIZES[full_size]
    family = shapes.build(settings.model_copy(update={"guidance": shapes.guidance}), with_vae)
    return Policy(family.settings, seed=0, family=family), shapes.conditioning(family)
