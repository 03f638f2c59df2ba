"""A tiny random Z-Image pipeline through the real classes."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from system.bench.gpu.tiny.flux2 import CHAT
from system.bench.gpu.tiny.parts import autoencoder, loud
from system.bench.gpu.tiny.qwen import qwen_tokenizer

TARGETS = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "feed_forward.w2")
"""Modules that get an adapter, which have other names than those of the other families."""

THINK = "<think>\n"
"""Makes one of two test prompts longer than 32 tokens, to which captions are filled up, and leaves the other below."""


def build_z_image(folder: Path, seed: int = 0) -> Path:
    """Save a random Z-Image of 16×16 images, 8×8 latents of two channels and 16 tokens."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = CHAT + THINK
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
    )
    transformer = ZImageTransformer2DModel(
        in_channels=2,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 16, 16],
    )
    loud(transformer)
    torch.nn.init.normal_(transformer.t_embedder.mlp[2].weight, std=0.01)  # takes 1,024 numbers in any model
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=autoencoder(2, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=Qwen3Model(text),
        tokenizer=tokenizer,
    ).save_pretrained(folder)
    return folder
