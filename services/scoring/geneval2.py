"""GenEval 2: a vision-language model answers questions about the image (arXiv 2512.16853).

The rule, Soft-TIFA, is that of evaluation.py in github.com/facebookresearch/GenEval2. Each question is asked alone,
with the words "Answer in one word." after it. Its score is the probability that the model's first token begins the
right answer, summed over several ways to write it. As there, two ways that begin with the same token both count, so a
sum can exceed 1.

PyTorch and transformers are imported only when a scorer is built: the driver imports this file to check a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from services.base.devices import device_of
from services.base.paths import model_file, resolve_model
from services.scoring.row import Row

if TYPE_CHECKING:
    import torch

MODEL = "Qwen/Qwen3-VL-8B-Instruct"
IMAGE_TOKEN = "<|image_pad|>"
YES = ("Yes", "yes", " yes", " Yes")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LENGTH_STEP = 64
"""Sequences are padded to a multiple of this, so that a row's shape depends only on its own question."""


class GenEval2:
    """The means over the questions of a prompt, as the sub-scores `score` (geometric) and `atoms` (arithmetic).

    The prompt files are GenEval 2's geneval2_data.jsonl, or others with its column `vqa_list`: pairs of a question and
    its answer.

    Args:
        model: the folder or hub id of a Qwen3-VL.
        dtype: `bf16` or `fp32`.
        device: `auto` is a GPU if there is one.
    """

    columns = ("vqa_list",)

    def __init__(self, model: str = MODEL, dtype: str = "bf16", device: str = "auto") -> None:
        import torch
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        folder = resolve_model(model)
        self.torch, self.device = torch, device_of(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
        found = Qwen3VLForConditionalGeneration.from_pretrained(folder, use_safetensors=True, dtype=self.dtype)
        self.model: Any = found.eval().to(self.device)

    @staticmethod
    def check(model: str = MODEL, **_: object) -> None:
        """Check that the model exists, before any actor starts."""
        for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
            model_file("scorer geneval2", model, file)

    @staticmethod
    def check_row(row: Row) -> None:
        """Check that a row has questions.

        Raises:
            TypeError, ValueError: it has none, or one is not a question and an answer.
        """
        pairs = row["vqa_list"]
        if not isinstance(pairs, list) or not pairs:
            raise TypeError("has a vqa_list that is not a list of questions and answers")
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise ValueError(f"has {pair} in vqa_list, which is not a question and its answer")

    def __call__(
        self, images_NHWC: np.ndarray, prompts: Sequence[str], rows: Sequence[Row]
    ) -> Mapping[str, np.ndarray]:
        answered = [self._answers(image, row["vqa_list"]) for image, row in zip(images_NHWC, rows, strict=True)]
        return {
            "score": np.array([geometric_mean(chances) for chances in answered]),
            "atoms": np.array([np.mean(chances) for chances in answered]),
        }

    def _answers(self, image_HWC: np.ndarray, pairs: Sequence[Sequence[str]]) -> np.ndarray:
        """The probability of the right answer to each question about an image, float64."""
        seen = self.image_processor([Image.fromarray(image_HWC)], return_tensors="pt")
        with self.torch.no_grad():
            return np.array([self._chance(seen, question, answer) for question, answer in pairs])

    def _chance(self, seen: Mapping[str, torch.Tensor], question: str, answer: str) -> float:
        torch, pad = self.torch, self.tokenizer.pad_token_id
        tokens = self.tokens(question, int(seen["image_grid_thw"].prod()))
        length = -(-len(tokens) // LENGTH_STEP) * LENGTH_STEP
        ids_1L = torch.tensor([tokens + [pad] * (length - len(tokens))], device=self.device)
        logits_1LV = self.model(
            input_ids=ids_1L,
            attention_mask=(torch.arange(length, device=self.device) < len(tokens)).long()[None],
            mm_token_type_ids=(ids_1L == self.image_id).int(),
            pixel_values=seen["pixel_values"].to(self.device, self.dtype),
            image_grid_thw=seen["image_grid_thw"].to(self.device),
            use_cache=False,
        ).logits
        chance_V = logits_1LV[0, len(tokens) - 1].float().softmax(-1)
        first = [self.tokenizer.encode(text, add_special_tokens=False)[0] for text in spellings(question, answer)]
        return float(chance_V[first].sum())

    def tokens(self, question: str, patches: int) -> list[int]:
        """The token ids of a chat in which the user shows an image of so many patches and asks a question."""
        content = [{"type": "image"}, {"type": "text", "text": f"{question} Answer in one word."}]
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        merged = patches // self.image_processor.merge_size**2
        return self.tokenizer(chat.replace(IMAGE_TOKEN, IMAGE_TOKEN * merged, 1)).input_ids


def spellings(question: str, answer: str) -> list[str]:
    """The ways to write an answer. For a number, these are the word and its digits; for others, ways to write yes."""
    if not question.startswith("How many"):
        return list(YES)
    digits = str(NUMBERS.index(answer) + 1) if answer in NUMBERS else "other"
    return [answer, answer.capitalize(), f" {answer}", f" {answer.capitalize()}", digits, f" {digits}"]


def geometric_mean(chances: np.ndarray) -> float:
    """The geometric mean, which is 0 if a probability is 0."""
    return float(np.exp(np.log(chances).mean())) if (chances > 0).all() else 0.0
