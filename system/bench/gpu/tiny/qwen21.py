"""A tiny random Qwen-Image 2.1 pipeline through the real classes."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from actors.policy.families.qwen_image21 import TextProcessor, TextToImagePipeline
from system.bench.gpu.tiny.parts import loud
from system.bench.gpu.tiny.qwen import qwen_scheduler, qwen_tokenizer

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def build_qwen21(folder: Path, seed: int = 0) -> Path:
    """Save a random Qwen-Image 2.1 with latents of four channels, each of which is 16×16 pixels and one token."""
    torch.manual_seed(seed)
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(["<|image_pad|>"], special_tokens=True)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    )
    transformer = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.1, 0.9, 1.3, 0.8],
    )
    TextToImagePipeline(
        transformer=loud(transformer),
        scheduler=qwen_scheduler(),
        vae=vae,
        text_encoder=Qwen3VLForConditionalGeneration(config),
        processor=TextProcessor(tokenizer, chat_template=CHAT),
    ).save_pretrained(folder)
    index = folder / "model_index.json"
    published = {"_class_name": "QwenImage21Pipeline", "processor": ["transformers", "Qwen3VLProcessor"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | published, indent=2))
    return folder
