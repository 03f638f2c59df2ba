"""ImageReward: a BLIP trained on human preferences (arXiv 2304.05977).

A text encoder reads the prompt and, by cross-attention, the image. A head of linear layers reads the hidden state of
its first token, and the result is normalised. The arithmetic is that of the package `image-reward` 1.5 in fp32, with
transformers' BLIP. The sizes of the model are read off its weights.

PyTorch and transformers are imported only when a scorer is built: the driver imports this file to check a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from services.base.devices import device_of
from services.base.paths import model_file, resolve_model
from services.scoring.aesthetic import linear_head
from services.scoring.pixels import batches_of, clip_pixels
from services.scoring.weights import load_exactly, weights_file

if TYPE_CHECKING:
    import torch
    from transformers import BlipTextConfig, BlipVisionConfig

TOKENIZER = "google-bert/bert-base-uncased"
MAX_TOKENS = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's output on the training data."""
HEAD_DIM = 64
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
"""Weights of BLIP's pretraining, and a constant, which the score does not need."""
PREFIXES = {"blip.visual_encoder.": "vision.", "blip.text_encoder.": "text.", "mlp.layers.": "head."}
VISION_NAMES = {
    "vision.cls_token": "vision.embeddings.class_embedding",
    "vision.pos_embed": "vision.embeddings.position_embedding",
    "vision.patch_embed.proj.": "vision.embeddings.patch_embedding.",
    "vision.blocks.": "vision.encoder.layers.",
    "vision.norm.": "vision.post_layernorm.",
}
VISION_PARTS = {
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
}


class ImageReward:
    """The normalised reward: about 0 on average, with a standard deviation of 1.

    Args:
        model: the weights as a .safetensors file, converted from ImageReward.pt.
        tokenizer: the folder or hub id of BERT's tokenizer.
        batch_size: images in one forward. Smaller batches are padded, so that a score does not depend on other images.
        device: `auto` is a GPU if there is one.
    """

    def __init__(self, model: str, tokenizer: str = TOKENIZER, batch_size: int = 16, device: str = "auto") -> None:
        import torch
        from safetensors.torch import load_file
        from torch import nn
        from transformers import AutoTokenizer, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        weights = weights_file("scorer imagereward", model)
        self.torch, self.device, self.batch_size = torch, device_of(device), batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(resolve_model(tokenizer))
        state = to_transformers(load_file(weights))
        vision, text = sizes_of(state)
        self.model = nn.ModuleDict(
            {
                "vision": BlipVisionModel(vision),
                "text": BlipTextModel(text, add_pooling_layer=False),
                "head": linear_head(text.hidden_size),
            }
        )
        load_exactly("scorer imagereward", self.model, state, weights)
        self.model.eval().to(self.device)
        edge = vision.image_size
        crop = {"height": edge, "width": edge}
        image_processor = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size=crop)
        self.pixels = clip_pixels(image_processor, self.device)

    @staticmethod
    def check(model: str, tokenizer: str = TOKENIZER, **_: object) -> None:
        """Check that the files exist, before any actor starts.

        Raises:
            UserError: the weights or the tokenizer are missing. The message names them.
        """
        weights_file("scorer imagereward", model)
        model_file("scorer imagereward", tokenizer, "tokenizer_config.json")

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        batches = batches_of(len(prompts), self.batch_size)
        pixels = self.pixels(images_NHWC, batches, self.batch_size)
        with self.torch.no_grad():
            scores = [
                self._batch(pixels_BCHW, [prompts[i] for i in batch])
                for batch, pixels_BCHW in zip(batches, pixels, strict=True)
            ]
        return np.concatenate(scores) if scores else np.zeros(0)

    def _batch(self, pixels_BCHW: torch.Tensor, prompts: list[str]) -> np.ndarray:
        padding = self.batch_size - len(prompts)
        tokens = self.tokenizer(
            prompts + prompts[:1] * padding,
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        seen_BPD = self.model["vision"](pixel_values=pixels_BCHW).last_hidden_state
        hidden_BLD = self.model["text"](
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
            encoder_hidden_states=seen_BPD,
            encoder_attention_mask=self.torch.ones(seen_BPD.shape[:2], dtype=self.torch.long, device=self.device),
        ).last_hidden_state
        reward_B = (self.model["head"](hidden_BLD[:, 0])[:, 0] - MEAN) / STD
        return reward_B.double().cpu().numpy()[: len(prompts)]


def to_transformers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights by their names in transformers' BLIP. Unknown names stay as they are."""
    return {_name(key): weight for key, weight in state.items() if not key.startswith(UNUSED)}


def _name(key: str) -> str:
    for prefix, name in (PREFIXES | VISION_NAMES).items():
        if key.startswith(prefix):
            key = name + key.removeprefix(prefix)
    if key.startswith("vision."):
        for part, name in VISION_PARTS.items():
            key = key.replace(part, name)
    return key


def sizes_of(state: Mapping[str, torch.Tensor]) -> tuple[BlipVisionConfig, BlipTextConfig]:
    """The sizes of both encoders, from the shapes of their weights. Attention heads have 64 dimensions, as in BERT."""
    from transformers import BlipTextConfig, BlipVisionConfig

    def layers(prefix: str) -> int:
        return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})

    _, tokens, width = state["vision.embeddings.position_embedding"].shape
    patch = state["vision.embeddings.patch_embedding.weight"].shape[-1]
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["vision.encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=layers("vision.encoder.layers."),
        num_attention_heads=width // HEAD_DIM,
        image_size=round((tokens - 1) ** 0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    vocabulary, text_width = state["text.embeddings.word_embeddings.weight"].shape
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=text_width,
        encoder_hidden_size=width,
        intermediate_size=len(state["text.encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=layers("text.encoder.layer."),
        num_attention_heads=text_width // HEAD_DIM,
        max_position_embeddings=len(state["text.embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
    )
    return vision, text
