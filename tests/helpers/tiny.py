"""A tiny random SD3 pipeline through the real classes, and the settings that go with it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from actors.policy.policy import Policy
from actors.policy.settings import LoraSettings, PolicySettings


def clip_tokenizer(max_length: int = 16) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer of 514 ids, without merges."""
    symbols = sorted(ByteLevel.alphabet())
    words = symbols + [symbol + "</w>" for symbol in symbols] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=max_length)


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights large enough that nothing is flat: fresh models put out zeros, which any code reproduces."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model


def build_sd3(folder: Path, seed: int = 0) -> Path:
    """Save a random SD3 pipeline of 16×16 images and 8×8×4 latents."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
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
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        shift_factor=0.1,
        scaling_factor=0.9,
    )
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


def tiny_settings(folder: Path, **changes) -> PolicySettings:
    """Settings of a policy of any of the tiny pipelines."""
    defaults = {
        "model": str(folder),
        "height": 16,
        "width": 16,
        "num_steps": 5,
        "guidance": 1.0,
        "max_sequence_length": 1,
        "dtype": "fp32",
        "device": "cpu",
        "lora": LoraSettings(rank=4, alpha=8),
    }
    return PolicySettings(**(defaults | changes))


def stir(policy: Policy, seed: int = 1, scale: float = 0.3) -> None:
    """Give an adapter, whose fresh weights change nothing, random ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
