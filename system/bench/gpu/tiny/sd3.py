"""A tiny random SD3 pipeline through the real classes."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from system.bench.gpu.tiny.parts import autoencoder, clip_text, clip_tokenizer, loud


def build_sd3(folder: Path, seed: int = 0) -> Path:
    """Save a random SD3 pipeline of 16×16 images and 8×8×4 latents."""
    torch.manual_seed(seed)
    config = clip_text(2, projection_dim=16)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    )
    vae = autoencoder(4)
    StableDiffusion3Pipeline(
        transformer=loud(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        text_encoder_3=None,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=None,
    ).save_pretrained(folder)
    return folder
