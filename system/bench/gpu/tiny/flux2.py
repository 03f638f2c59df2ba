"""Tiny random FLUX.2 pipelines, [dev] and klein, through the real classes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM

from system.bench.gpu.tiny.parts import loud
from system.bench.gpu.tiny.qwen import qwen_tokenizer

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
PROMPT_ALONE = "{{ messages[-1].content[0].text }}<|im_end|>"
"""Leaves out the pipeline's system message, which is much longer than a tiny text."""


def build_flux2(folder: Path, seed: int = 0) -> Path:
    """Save a random FLUX.2 [dev] of 16×16 images, 4×4 latents of two channels and 4 tokens.

    Its tokenizer is not part of a processor, because transformers' processor for Mistral 3 needs torchvision.
    """
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = PROMPT_ALONE
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 31,  # the pipeline reads layers 10, 20 and 30
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    Flux2Pipeline(
        **_shared_parts(guidance_embeds=True),
        text_encoder=Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)),
        tokenizer=tokenizer,
    ).save_pretrained(folder)
    return folder


def build_flux2_klein(folder: Path, seed: int = 0) -> Path:
    """Save a random FLUX.2 klein of 16×16 images, 4×4 latents of two channels and 4 tokens."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = CHAT
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=28,  # the pipeline reads layers 9, 18 and 27
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
    )
    Flux2KleinPipeline(
        **_shared_parts(guidance_embeds=False), text_encoder=Qwen3ForCausalLM(text), tokenizer=tokenizer
    ).save_pretrained(folder)
    return folder


def _shared_parts(guidance_embeds: bool) -> dict[str, Any]:
    transformer = Flux2Transformer2DModel(
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=2,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
    )
    vae.bn.running_mean.copy_(torch.linspace(-0.2, 0.3, 8))
    vae.bn.running_var.copy_(torch.linspace(0.5, 1.5, 8))
    return {
        "transformer": loud(transformer),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae,
    }
