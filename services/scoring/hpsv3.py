"""HPSv3: a Qwen2-VL with a head of two outputs, trained on human preferences (arXiv 2508.03789).

The head reads the hidden state of the token `<|Reward|>` and outputs a Gaussian, [μ, ln σ]. The score is μ. The
arithmetic is that of the package `hpsv3` 1.0.0 (MIT) on transformers 4.45; hpsv3_instruction.txt is its instruction,
word for word. Deviations: if a prompt contains `<|Reward|>`, the last such token is read; and the head is computed only
at that token.

PyTorch and transformers are imported only when a scorer is built: the driver imports this file to check a recipe.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from services.base.devices import device_of
from services.base.errors import UserError
from services.base.paths import model_file, resolve_model
from services.scoring.patches import Patches
from services.scoring.pixels import batches_of
from services.scoring.weights import same_keys

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

REWARD_TOKEN = "<|Reward|>"
IMAGE_TOKEN = "<|image_pad|>"
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
)
"""Qwen2-VL's chat template for one image and one text, with the generation prompt."""
INSTRUCTION = Path(__file__).with_name("hpsv3_instruction.txt")
PIXELS = 256 * 28 * 28
LENGTH_STEP = 64
"""Sequences are padded to a multiple of this, so that a row's shape depends only on its own prompt."""
CHECKPOINT_FILE = "HPSv3.safetensors"


class HPSv3:
    """The score μ of HPSv3 for each image.

    Args:
        model: the folder or hub id with HPSv3.safetensors, or such a file.
        base: the folder or hub id of the Qwen2-VL that it was trained from: config, tokenizer and image processor.
        instruction: a text file. `{prompt}` in it is replaced by the prompt, and the score is read at `<|Reward|>`.
        pixels: images are resized to about this number of pixels.
        dtype: `bf16` or `fp32`, the type of the transformer. The head is fp32.
        batch_size: images in one forward. Smaller batches are padded.
        device: `auto` is a GPU if there is one.
    """

    def __init__(
        self,
        model: str = "MizzenAI/HPSv3",
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        instruction: str = str(INSTRUCTION),
        pixels: int = PIXELS,
        dtype: str = "bf16",
        batch_size: int = 8,
        device: str = "auto",
    ) -> None:
        import torch
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        folder = resolve_model(base)
        self.torch, self.device, self.batch_size = torch, device_of(device), batch_size
        self.dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        self.instruction = Path(resolve_model(instruction)).read_text()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.tokenizer.add_special_tokens(
            {"additional_special_tokens": [REWARD_TOKEN]}, replace_extra_special_tokens=False
        )
        self.reward_id, self.image_id = self.tokenizer.convert_tokens_to_ids([REWARD_TOKEN, IMAGE_TOKEN])
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.patches = Patches(self.image_processor, pixels, self.device)
        self.model, self.head = load_reward_model(folder, checkpoint(model), self.dtype)
        self.model.to(self.device)
        self.head.to(self.device)

    @staticmethod
    def check(
        model: str = "MizzenAI/HPSv3",
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        instruction: str = str(INSTRUCTION),
        **_: object,
    ) -> None:
        """Check that the files exist, before any actor starts.

        Raises:
            UserError: the base, the instruction or a local checkpoint is missing.
        """
        model_file("scorer hpsv3", base, "config.json")
        if not Path(path := resolve_model(instruction)).is_file():
            raise UserError(
                f"scorer hpsv3: no instruction at `{path}`; give a text file with {{prompt}} and {REWARD_TOKEN}"
            )
        if Path(path := resolve_model(model)).is_dir() and not (Path(path) / CHECKPOINT_FILE).exists():
            raise UserError(
                f"scorer hpsv3: `{path}` has no {CHECKPOINT_FILE}; give a folder with this file, or a hub id"
            )

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        gauss_N2 = self.gaussians(images_NHWC, prompts)
        if len(gauss_N2):
            log.info("hpsv3: %d images, mean sigma %.3f", len(gauss_N2), np.nanmean(np.exp(gauss_N2[:, 1])))
        return gauss_N2[:, 0]

    def gaussians(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """[μ, ln σ] of each image, (N, 2) float64. It is NaN if the prompt contains the token for an image."""
        gauss_N2 = np.full((len(prompts), 2), np.nan)
        if not len(prompts):
            return gauss_N2
        grid = self.patches.grid(images_NHWC.shape[1:3])
        tokens_of = {prompt: self._tokens(prompt, grid[0] * grid[1]) for prompt in set(prompts)}
        tokens = [tokens_of[prompt] for prompt in prompts]
        length_N = np.array([-(-len(ids) // LENGTH_STEP) * LENGTH_STEP for ids in tokens])
        length_N[[IMAGE_TOKEN in prompt for prompt in prompts]] = 0
        batches = [
            rows[list(batch)]
            for length in np.unique(length_N[length_N > 0])
            for rows in [np.flatnonzero(length_N == length)]
            for batch in batches_of(len(rows), self.batch_size)
        ]
        pixels = self.patches.pixels(images_NHWC, batches, self.batch_size)
        for batch, pixels_PD in zip(batches, pixels, strict=True):
            padded = [*batch, *batch[:1].repeat(self.batch_size - len(batch))]
            gauss_B2 = self._forward([tokens[i] for i in padded], length_N[batch[0]], pixels_PD, grid)
            gauss_N2[batch] = gauss_B2[: len(batch)]
        return gauss_N2

    def _tokens(self, prompt: str, patches: int) -> list[int]:
        merged = patches // self.image_processor.merge_size**2
        text = self.instruction.replace("{prompt}", prompt)
        return self.tokenizer(CHAT.format(image=IMAGE_TOKEN * merged, text=text)).input_ids

    def _forward(
        self, tokens: list[list[int]], length: int, pixels_PD: torch.Tensor, grid: tuple[int, int]
    ) -> np.ndarray:
        """[μ, ln σ], (B, 2), of rows of tokens. They are padded on the right, where the causal mask hides the padding.

        Positions are sequential, as in the package's forward, and not Qwen2-VL's three-dimensional positions.
        """
        torch, count = self.torch, len(tokens)
        ids_BL = torch.tensor([ids + [self.tokenizer.pad_token_id] * (length - len(ids)) for ids in tokens])
        reads_B = torch.tensor([len(ids) - 1 - ids[::-1].index(self.reward_id) for ids in tokens])
        with torch.no_grad():
            hidden_BLD = self.model(
                input_ids=ids_BL.to(self.device),
                position_ids=torch.arange(length, device=self.device).expand(3, count, length),
                pixel_values=pixels_PD.to(self.dtype),
                image_grid_thw=torch.tensor([[1, *grid]] * count, device=self.device),
                use_cache=False,
            ).last_hidden_state
            gauss_B2 = self.head(hidden_BLD[torch.arange(count), reads_B.to(self.device)].float())
        return gauss_B2.double().cpu().numpy()


def checkpoint(model: str) -> Path:
    """The file of weights, from a path, a folder or the hub.

    Raises:
        UserError: there are no such weights.
    """
    path = Path(resolve_model(model))
    return path if path.is_file() else model_file("scorer hpsv3", model, CHECKPOINT_FILE)


def load_reward_model(base: str, weights: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The Qwen2-VL without its language head, and the reward head in fp32.

    Raises:
        UserError: the checkpoint lacks a weight, or has one that the model does not have.
    """
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import load_file
    from torch import nn
    from transformers import Qwen2VLConfig, Qwen2VLModel

    state = {name: weight for key, weight in load_file(weights).items() if (name := mapped_key(key))}
    embeddings = state.get("language_model.embed_tokens.weight")
    config = Qwen2VLConfig.from_pretrained(base)
    if embeddings is not None:
        config.text_config.vocab_size = len(embeddings)
    with init_empty_weights(include_buffers=False):
        model = Qwen2VLModel._from_config(config, dtype=dtype)
        head = reward_head(config.text_config.hidden_size)
    both = nn.ModuleDict({"model": model, "rm_head": head})
    state = {k if k.startswith("rm_head.") else f"model.{k}": v for k, v in state.items()}
    same_keys("scorer hpsv3", both.state_dict(), state, weights)
    both.load_state_dict(
        {k: v.to(torch.float32 if k.startswith("rm_head.") else dtype) for k, v in state.items()}, assign=True
    )
    both.eval().requires_grad_(False)
    return model, head


def reward_head(width: int) -> torch.nn.Module:
    """HPSv3's head, which maps a hidden state to [μ, ln σ]."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def mapped_key(key: str) -> str | None:
    """Map a key of Qwen2-VL in transformers 4.45 to that of `Qwen2VLModel` today; None for the unused language head."""
    if key.startswith("lm_head."):
        return None
    return f"language_model.{key.removeprefix('model.')}" if key.startswith("model.") else key
