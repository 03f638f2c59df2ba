"""What a reward model takes: bytes on its GPU, and work for an image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from actors.policy.families.family import DTYPES
from actors.policy.settings import PolicySettings
from services.base.paths import resolve_model
from services.scoring.aesthetic import CLIP as CLIP_L
from services.scoring.aesthetic import linear_head
from services.scoring.geneval.colours import BATCH_SIZE
from services.scoring.geneval.scorer import DETECTOR
from services.scoring.geneval2 import LENGTH_STEP as QUESTION_STEP
from services.scoring.geneval2 import MODEL as GENEVAL2
from services.scoring.hpsv2 import BASE
from services.scoring.hpsv3 import INSTRUCTION, LENGTH_STEP, PIXELS
from services.scoring.imagereward import MAX_TOKENS
from services.scoring.pixels import THREADS
from services.scoring.settings import ScorerSettings
from system.capacity.architecture import KNOWN, read_config
from system.capacity.passes import sizes
from system.capacity.trace import META, Kind, Operator, Trace, traced, without_data

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
SHORTEST_PX, LONGEST_PX, MULTIPLE_PX = 800, 1333, 32
"""The input of GenEval's detector."""
QUESTIONS = 7.5
"""Questions about an image: the mean of the 800 prompts in github.com/facebookresearch/GenEval2."""
LEAST_PIXELS, MOST_PIXELS = 2**16, 2**24
"""The bounds of an image's pixels for Qwen3-VL, by its preprocessor_config.json."""
QUESTION_TOKENS = 32
"""Tokens of a question with the words of the chat's template."""
RESIZING_S = {"hpsv3": (0.0035, 0.0131), **dict.fromkeys([*CLIP_OF, "imagereward"], (0.0019, 0.0169))}
"""CPU seconds to resize an image for a model: of each image, and of each of its megapixels. Measured at 512 and 1024
pixels (docs/results/performance.md); not known for other scorers."""


@dataclass(frozen=True)
class Reward:
    """What a scorer takes. All is 0 for a scorer that is no model of this process or whose model is not known."""

    num_bytes: float = 0
    """Weights."""
    activation_bytes: float = 0
    per_image: Trace = field(default_factory=Trace)
    known: bool = False


def reward_of(scorer: ScorerSettings, policy: PolicySettings) -> Reward:
    """What a scorer takes for images of a policy, if its model's configuration is on this machine or known."""
    options, size_HW = scorer.options, (policy.height, policy.width)
    match scorer.scorer:
        case "pickscore" | "clipscore" | "clip" | "hpsv2" | "aesthetic" | "diversity":
            model = str(options.get("base" if scorer.scorer == "hpsv2" else "model", CLIP_OF[scorer.scorer]))
            folder = _folder(model)
            return _dual_encoder(str(folder), int(options.get("batch_size", 16))) if folder else Reward()
        case "hpsv3":
            base = _folder(str(options.get("base", "Qwen/Qwen2-VL-7B-Instruct")))
            return _hpsv3(str(base), int(options.get("batch_size", 8))) if base else Reward()
        case "imagereward":
            return _imagereward(int(options.get("batch_size", 16)))
        case "geneval" if "url" not in options:
            detector, clip = _folder(str(options.get("detector", DETECTOR))), _folder(str(options.get("clip", CLIP_L)))
            if detector and clip:
                return _geneval(str(detector), str(clip), int(options.get("batch_size", 8)), size_HW)
        case "geneval2":
            folder = _folder(str(options.get("model", GENEVAL2)))
            return _geneval2(str(folder), str(options.get("dtype", "bf16")), size_HW) if folder else Reward()
    return Reward()


def resizing_seconds(scorer: ScorerSettings, policy: PolicySettings) -> float:
    """Seconds of resizing one image of a policy, in the threads of a replica. Images are resized while the model works
    on others."""
    each_s, megapixel_s = RESIZING_S.get(scorer.scorer, (0.0, 0.0))
    return (each_s + megapixel_s * policy.height * policy.width / 1e6) / THREADS


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
def _dual_encoder(folder: str, batch: int) -> Reward:
    """A CLIP or SigLIP, in fp32.

    Vision tokens are counted by patches, text tokens by the longest text. Activations are those of the widest layer.
    """
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    settings = read_config(Path(folder))
    kinds = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}
    if settings["model_type"] not in kinds:
        return Reward()
    config_class, model_class = kinds[settings["model_type"]]
    config: Any = config_class.from_dict(settings)
    with META:
        model: Any = model_class(config)
    vision, text = config.vision_config, config.text_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + (settings["model_type"] == "clip")
    flops = 2 * (tokens * sizes(model.vision_model)[0] + text.max_position_embeddings * sizes(model.text_model)[0])
    num_bytes = sizes(model)[1]
    work = Operator("matmul_fp32", flops, num_bytes // batch)
    widest = 4 * batch * tokens * (vision.intermediate_size + 4 * vision.hidden_size)
    return Reward(num_bytes, 2 * widest, Trace(Counter({work: 1})), known=True)


@cache
def _imagereward(batch: int) -> Reward:
    """The published BLIP, in fp32. Each image is read with a text of MAX_TOKENS."""
    from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    settings = read_config(KNOWN / "THUDM/ImageReward")
    vision_config = BlipVisionConfig.from_dict(settings["vision_config"])
    with without_data(), torch.no_grad():
        vision = BlipVisionModel(vision_config).eval()
        text = BlipTextModel(BlipTextConfig.from_dict(settings["text_config"]), add_pooling_layer=False).eval()
        pixels_1CHW = torch.zeros(1, 3, vision_config.image_size, vision_config.image_size)
        ids_1L = torch.zeros(1, MAX_TOKENS, dtype=torch.long)
        one = traced(
            lambda: text(input_ids=ids_1L, encoder_hidden_states=vision(pixel_values=pixels_1CHW).last_hidden_state)
        )
    num_bytes = sum(sizes(part)[1] for part in (vision, text, linear_head(text.config.hidden_size)))
    return Reward(num_bytes, batch * one.peak_bytes, _without_memory(one), known=True)


@cache
def _geneval(detector: str, clip: str, batch: int, size_HW: tuple[int, int]) -> Reward:
    """A Mask2Former and a CLIP, in fp32. One object of each image is counted for the CLIP that names colours.

    The detector's input is that of the published model's preprocessor_config.json: the shorter edge has 800 pixels, the
    longer one at most 1333, and both are multiples of 32.
    """
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    scale = min(SHORTEST_PX / min(size_HW), LONGEST_PX / max(size_HW))
    height, width = (ceil(scale * side / MULTIPLE_PX - 1e-6) * MULTIPLE_PX for side in size_HW)
    config = Mask2FormerConfig.from_dict(read_config(Path(detector)))
    with FakeTensorMode(), torch.no_grad():  # on `meta` its deformable attention mixes devices
        model = Mask2FormerForUniversalSegmentation(config).eval()
        pixels_1CHW = torch.zeros(1, 3, height, width)
        one = traced(lambda: model(pixel_values=pixels_1CHW))
    colours = _dual_encoder(clip, BATCH_SIZE)
    num_bytes = sizes(model)[1] + colours.num_bytes
    activations = max(batch * one.peak_bytes, colours.activation_bytes)
    return Reward(num_bytes, activations, _without_memory(one) + colours.per_image, known=True)


def _without_memory(trace: Trace) -> Trace:
    """A trace's operators. Its memory is in `Reward.activation_bytes`."""
    return Trace(trace.operators)


@cache
def _geneval2(folder: str, dtype: str, size_HW: tuple[int, int]) -> Reward:
    """A Qwen3-VL, which reads the image again for each question, alone."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    config = Qwen3VLConfig.from_dict(read_config(Path(folder)))
    with META:
        model = Qwen3VLForConditionalGeneration(config).to(DTYPES[dtype])
    vision, text = config.vision_config, config.text_config
    seen_HW = smart_resize(*size_HW, vision.patch_size * vision.spatial_merge_size, LEAST_PIXELS, MOST_PIXELS)
    patches = prod(side // vision.patch_size for side in seen_HW)
    length = -(-(patches // vision.spatial_merge_size**2 + QUESTION_TOKENS) // QUESTION_STEP) * QUESTION_STEP
    embedding, head = (sizes(part)[0] for part in (model.get_input_embeddings(), model.lm_head))
    language = sizes(model.model.language_model)[0] - embedding + head
    flops = 2 * (length * language + patches * sizes(model.model.visual)[0])
    num_bytes, item = sizes(model)[1], DTYPES[dtype].itemsize
    kind: Kind = "matmul_bf16" if dtype == "bf16" else "matmul_fp32"
    work = Operator(kind, int(QUESTIONS * flops), int(QUESTIONS * num_bytes))
    widest = item * length * (2 * text.intermediate_size + 4 * text.hidden_size)
    logits = (item + torch.float32.itemsize) * length * text.vocab_size
    return Reward(num_bytes, max(2 * widest, logits), Trace(Counter({work: 1})), known=True)


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
    return Reward(num_bytes, 2 * widest, Trace(Counter({work: 1})), known=True)
