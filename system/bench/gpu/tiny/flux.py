"""A tiny random FLUX.1 pipeline through the real classes."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from system.bench.gpu.tiny.parts import autoencoder, clip_text, clip_tokenizer, loud


def build_flux(folder: Path, seed: int = 0, guidance_embeds: bool = True) -> Path:
    """Save a random FLUX of 16×16 images, 8×8 latents of one channel and 16 tokens."""
    torch.manual_seed(seed)
    clip = clip_text(1)
    letters = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>", "▁")]
    letters += [(letter, -1.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    vae = autoencoder(1, use_quant_conv=False, use_post_quant_conv=False)
    FluxPipeline(
        transformer=loud(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
        ),
        vae=vae,
        text_encoder=CLIPTextModel(clip),
        tokenizer=clip_tokenizer(),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
        tokenizer_2=T5Tokenizer(vocab=letters, extra_ids=0),
    ).save_pretrained(folder)
    return folder
