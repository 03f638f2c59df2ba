"""What a reward model takes: bytes on its GPU, and work for an image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from services.base.paths import resolve_model
from services.scoring.aesthetic import CLIP as CLIP_L
from services.scoring.hpsv2 import BASE
from services.scoring.hpsv3 import INSTRUCTION, LENGTH_STEP, PIXELS
from services.scoring.settings import ScorerSettings
from system.capacity.architecture import KNOWN, read_config
from system.capacity.passes import sizes
from system.capacity.trace import META, Operator, Trace

CHARACTERS_PER_TOKEN = 4
CLIP_OF = {
    "pickscore": "yuvalkirstain/PickScore_v1",
    "clipscore": CLIP_L,
    "clip": "",
    "hpsv2": BASE,
    "aesthetic": CLIP_L,
    "diversity": "",
}
"""The CLIP model of each scorer that is one, unless its options name another."""
PATCH_PX = 28
"""Side of the square of pixels that is one token of Qwen2-VL."""
PREPROCESSING_S = {"hpsv3": 0.03}
"""Seconds on the CPU for an image, one after another; measured on a CPU for HPSv3, not known for others."""


@dataclass(frozen=True)
class Reward:
    """What a scorer takes. All is 0 for a scorer that is no model of this process or whose model is not known."""

    num_bytes: float = 0
    """Weights."""
    activation_bytes: float = 0
    per_image: Trace = field(default_factory=Trace)
    cpu_s: float = 0
    """Seconds on the CPU for an image, before the GPU begins."""
    known: bool = False


def reward_of(scorer: ScorerSettings) -> Reward:
    """What a scorer takes, if it is HPSv3 or a CLIP model whose configuration is on this machine or known."""
    match scorer.scorer:
        case "pickscore" | "clipscore" | "clip" | "hpsv2" | "aesthetic" | "diversity":
            model = str(scorer.options.get("base" if scorer.scorer == "hpsv2" else "model", CLIP_OF[scorer.scorer]))
            folder = _folder(model)
            return _clip(str(folder), int(scorer.options.get("batch_size", 16))) if folder else Reward()
        case "hpsv3":
            base = _folder(str(scorer.options.get("base", "Qwen/Qwen2-VL-7B-Instruct")))
            return _hpsv3(str(base), int(scorer.options.get("batch_size", 8))) if base else Reward()
    return Reward()


def hpsv3_tokens() -> tuple[int, int]:
    """Tokens of an image, and of all that HPSv3 reads with it: image, instruction and a short prompt, padded."""
    image = PIXELS // PATCH_PX**2
    text = len(INSTRUCTION.read_text()) // CHARACTERS_PER_TOKEN
    return image, -(-(image + text) // LENGTH_STEP) * LENGTH_STEP


def _folder(model: str) -> Path | None:
    for folder in (Path(resolve_model(model)), KNOWN / model):
        if (folder / "config.json").is_file():
            return folder
    return None


@cache
def _clip(folder: str, batch: int) -> Reward:
    """fp32. Vision tokens by patches, text tokens by the longest text; activations are those of the widest layer.

    A SigLIP model, which `clip` may have, is not counted.
    """
    from transformers import CLIPConfig, CLIPModel

    settings = read_config(Path(folder))
    if settings["model_type"] != "clip":
        return Reward()
    config = CLIPConfig.from_dict(settings)
    with META:
        model = CLIPModel(config)
    vision, text = config.vision_config, config.text_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    flops = 2 * (tokens * sizes(model.vision_model)[0] + text.max_position_embeddings * sizes(model.text_model)[0])
    num_bytes = sizes(model)[1]
    work = Operator("matmul_fp32", flops, num_bytes // batch)
    widest = 4 * batch * tokens * (vision.intermediate_size + 4 * vision.hidden_size)
    return Reward(num_bytes, 2 * widest, Trace(Counter({work: 1})), known=True)


@cache
def _hpsv3(folder: str, batch: int) -> Reward:
    """bf16. Tokens are those of the image, of the instruction and of a prompt, padded as the scorer pads them."""
    from transformers import Qwen2VLConfig, Qwen2VLModel

    config = Qwen2VLConfig.from_dict(read_config(Path(folder)))
    with META:
        model = Qwen2VLModel(config).to(torch.bfloat16)
    image, length = hpsv3_tokens()
    flops = 2 * (length * sizes(model.language_model)[0] + 4 * image * sizes(model.visual)[0])
    num_bytes = sizes(model)[1]
    work = Operator("matmul_bf16", flops, num_bytes // batch)
    widest = 2 * batch * length * (2 * config.text_config.intermediate_size + 4 * config.text_config.hidden_size)
    return Reward(num_bytes, 2 * widest, Trace(Counter({work: 1})), PREPROCESSING_S["hpsv3"], known=True)
