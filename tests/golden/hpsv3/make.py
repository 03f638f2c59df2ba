"""Make the golden numbers of HPSv3: what the package `hpsv3` itself gives for a tiny random checkpoint.

Needs an environment of its own, since the package pins transformers 4.45:

    python -m venv golden
    golden/bin/pip install torch transformers==4.45.2 "numpy<2.3" accelerate
    golden/bin/pip install --no-deps hpsv3==1.0.0
    golden/bin/python tests/golden/hpsv3/make.py

Writes the checkpoint, its base's config, tokenizer and image processor, and golden.json beside this file. What the
package imports for training and video is replaced by stand-ins.
"""

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import torch
import torch.utils
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Qwen2TokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)

HERE = Path(__file__).parent
UNUSED = ("matplotlib", "datasets", "pandas", "peft", "trl", "fire", "omegaconf", "tensorboard", "torchvision")
UNUSED_PARTS = (
    "matplotlib.pyplot",
    "matplotlib.patches",
    "torch.utils.tensorboard",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
CASES = [
    {"prompt": "a red fox in the snow", "height": 512, "width": 512, "seed": 0},
    {"prompt": 'a sign that says "{open}"', "height": 512, "width": 512, "seed": 1},
    {"prompt": "", "height": 384, "width": 640, "seed": 2},
    {"prompt": "a long prompt of many words, " * 12, "height": 384, "width": 640, "seed": 3},
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stand_in(name: str) -> None:
    module = StandIn(name)
    module.__spec__, module.__version__ = ModuleSpec(name, None), "1.0"
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def image(case: dict) -> np.ndarray:
    """uint8 (height, width, 3): noise in blocks of 16, so that resizing has something to do."""
    rng = np.random.default_rng(case["seed"])
    blocks = rng.integers(0, 256, (case["height"] // 16, case["width"] // 16, 3), np.uint8)
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


def new_tokenizer() -> Qwen2TokenizerFast:
    """Bytes, no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = Qwen2TokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIALS[0], eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": SPECIALS[1:]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_config(tokenizer: Qwen2TokenizerFast) -> Qwen2VLConfig:
    start, end, pad = tokenizer.convert_tokens_to_ids(SPECIALS[3:])
    return Qwen2VLConfig(
        vocab_size=len(tokenizer) + 40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]},
        tie_word_embeddings=False,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=pad,
        video_token_id=len(tokenizer) + 1,
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    )


def main() -> None:
    """Build, save, run the package, write its numbers."""
    _ = Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor  # loaded before the stand-ins
    for name in (*UNUSED, *UNUSED_PARTS):
        stand_in(name)
    from hpsv3.inference import HPSv3RewardInferencer
    from hpsv3.model.qwen2vl_trainer import Qwen2VLRewardModelBT

    tokenizer, images = new_tokenizer(), Qwen2VLImageProcessor()
    config = new_config(tokenizer)
    base = HERE / "base"
    for part in (tokenizer, images, config):
        part.save_pretrained(base)

    torch.manual_seed(0)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    reward_ids = tokenizer.convert_tokens_to_ids(["<|Reward|>"])
    model = Qwen2VLRewardModelBT(
        config, output_dim=2, reward_token="special", special_token_ids=reward_ids, rm_head_type="ranknet"
    )
    model.resize_token_embeddings(len(tokenizer))
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=(2 if "rm_head" in name else 1) / weight.shape[1:].numel() ** 0.5)
    model.config.pad_token_id = tokenizer.pad_token_id
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, HERE / "HPSv3.safetensors")

    package = object.__new__(HPSv3RewardInferencer)
    package.device, package.use_special_tokens, package.model = "cpu", True, model.eval()
    package.processor = Qwen2VLProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE)
    golden = []
    for case in CASES:
        with torch.no_grad():
            gauss_2 = package.reward([Image.fromarray(image(case))], [case["prompt"]])[0]
        golden.append({**case, "gauss": gauss_2.tolist()})
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(json.dumps(golden, indent=1))


if __name__ == "__main__":
    main()
