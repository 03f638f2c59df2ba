"""Tiny reward models with weights that depend on nothing but their names and shapes, and pictures to score.

Both the tests and the script that makes the golden numbers (tests/golden/reward_models/make.py) use them.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import nn
from transformers import BertTokenizerFast, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

EDGE, PATCH = 32, 8
CLIP_TEXT = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256, "num_hidden_layers": 2}
CLIP_VISION = {**CLIP_TEXT, "image_size": EDGE, "patch_size": PATCH}
TEXT_LENGTH = 77
AESTHETIC_WIDTH = 768
"""The package fixes the width of the embedding that its head reads."""
CASES = [
    {"prompt": "a red fox in the snow", "seed": 0, "height": 64, "width": 64},
    {"prompt": "TWO dogs, one cat!", "seed": 1, "height": 96, "width": 64},
    {"prompt": "", "seed": 2, "height": 32, "width": 32},
    {"prompt": "many words " * 60, "seed": 3, "height": 40, "width": 72},
]


def fill(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of these names and shapes: matrices that keep the size of a vector, scales near 1, small offsets."""
    filled = {}
    for name, tensor in state.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        noise = rng.standard_normal(tuple(tensor.shape)).astype(np.float32)
        if tensor.ndim < 2:
            is_scale = name.endswith("weight") or name == "logit_scale"
            noise = 0.1 * noise + (1.0 if is_scale else 0.0)
        elif "embed" not in name:
            noise /= np.sqrt(np.prod(tensor.shape[1:]))
        filled[name] = torch.from_numpy(np.asarray(noise, np.float32))
    return filled


def picture(case: Mapping) -> np.ndarray:
    """uint8 (height, width, 3): noise in blocks of 8, so that resizing has something to do."""
    rng = np.random.default_rng(case["seed"])
    blocks = rng.integers(0, 256, (case["height"] // 8, case["width"] // 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with bytes only: the first 512 tokens of OpenAI's vocabulary, in its order, and two specials."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])


def bert_tokenizer(folder: Path) -> BertTokenizerFast:
    """BERT's tokenizer with single letters, and ImageReward's two more specials, which a prompt does not use."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)


def save_processors(folder: Path) -> None:
    """The tokenizer and the image processor of the tiny CLIP."""
    clip_tokenizer().save_pretrained(folder)
    crop = {"height": EDGE, "width": EDGE}
    CLIPImageProcessorPil(size={"shortest_edge": EDGE}, crop_size=crop).save_pretrained(folder)


def clip_shapes(projection: int) -> dict[str, torch.Tensor]:
    """Empty weights of the tiny CLIP in OpenAI's layout."""
    width = CLIP_TEXT["hidden_size"]

    def block(prefix: str) -> dict[str, tuple[int, ...]]:
        return {
            f"{prefix}.attn.in_proj_weight": (3 * width, width),
            f"{prefix}.attn.in_proj_bias": (3 * width,),
            f"{prefix}.attn.out_proj.weight": (width, width),
            f"{prefix}.attn.out_proj.bias": (width,),
            **{f"{prefix}.ln_{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")},
            f"{prefix}.mlp.c_fc.weight": (4 * width, width),
            f"{prefix}.mlp.c_fc.bias": (4 * width,),
            f"{prefix}.mlp.c_proj.weight": (width, 4 * width),
            f"{prefix}.mlp.c_proj.bias": (width,),
        }

    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (TEXT_LENGTH, width),
        "text_projection": (width, projection),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((EDGE // PATCH) ** 2 + 1, width),
        "visual.proj": (width, projection),
        "visual.conv1.weight": (width, 3, PATCH, PATCH),
        "token_embedding.weight": (514, width),
        **{
            f"{ln}.{kind}": (width,)
            for ln in ("visual.ln_pre", "visual.ln_post", "ln_final")
            for kind in ("weight", "bias")
        },
    }
    for i in range(CLIP_TEXT["num_hidden_layers"]):
        shapes |= block(f"visual.transformer.resblocks.{i}") | block(f"transformer.resblocks.{i}")
    return {name: torch.empty(shape) for name, shape in shapes.items()}


def clip_config(projection: int, activation: str) -> dict:
    """Settings of transformers' CLIPConfig for the tiny CLIP."""
    text = {**CLIP_TEXT, "vocab_size": 514, "max_position_embeddings": TEXT_LENGTH, "hidden_act": activation}
    text |= {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = {**CLIP_VISION, "hidden_act": activation}
    return {"text_config": text, "vision_config": vision, "projection_dim": projection}


def head_shapes(width: int) -> dict[str, torch.Tensor]:
    """Empty weights of the head of the aesthetic predictor and of ImageReward."""
    sizes = {"layers.0": (1024, width), "layers.2": (128, 1024), "layers.4": (64, 128), "layers.6": (16, 64)}
    module = {name: nn.Linear(shape[1], shape[0]) for name, shape in {**sizes, "layers.7": (1, 16)}.items()}
    return {f"{name}.{key}": tensor for name, linear in module.items() for key, tensor in linear.state_dict().items()}


def save(state: Mapping[str, torch.Tensor], file: Path) -> str:
    """Write filled weights; returns the path."""
    save_file({name: tensor.contiguous() for name, tensor in fill(state).items()}, file)
    return str(file)
