"""What several tiny pipelines share."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTokenizer


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


def clip_text(layers: int, **more: Any) -> CLIPTextConfig:
    """The configuration of a CLIP text model for `clip_tokenizer`."""
    return CLIPTextConfig(
        vocab_size=514,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        **more,
    )


def autoencoder(latent_channels: int, **more: Any) -> AutoencoderKL:
    """A VAE of 16×16 images and 8×8 latents."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
        shift_factor=0.1,
        scaling_factor=0.9,
        **more,
    )
