"""Maps the weights of a CLIP in OpenAI's and open_clip's layout to those of transformers' CLIPModel.

Attention has one matrix for queries, keys and values there, and three here. Projections are transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
PREFIXES = {
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "ln_final.": "text_model.final_layer_norm.",
}
PARTS = {
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
TRANSPOSED = ("visual.proj", "text_projection")
JOINED = ".attn.in_proj_"


def to_transformers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights by their names in transformers. Unknown names stay as they are."""
    mapped: dict[str, torch.Tensor] = {}
    for key, weight in state.items():
        name = _name(key)
        if JOINED in name:
            block, _, kind = name.partition(JOINED)
            for part, piece in zip("qkv", weight.chunk(3), strict=True):
                mapped[f"{block}.self_attn.{part}_proj.{kind}"] = piece
        else:
            mapped[name] = weight.T if key in TRANSPOSED else weight
    return mapped


def _name(key: str) -> str:
    if key in NAMES:
        return NAMES[key]
    for prefix, name in PREFIXES.items():
        if key.startswith(prefix):
            key = name + key.removeprefix(prefix)
            break
    for part, name in PARTS.items():
        key = key.replace(part, name)
    return key
