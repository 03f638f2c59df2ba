"""PickScore: a CLIP trained on human preferences (arXiv 2305.01569).

Torch and transformers are imported when a scorer is built: the driver imports this file to check a recipe.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from services.errors import UserError
from services.paths import resolve_model


class PickScore:
    """exp(logit_scale) · cos(text, image) / scale.

    Args:
        model: a folder or hub id in the layout of PickScore_v1.
        processor: where tokenizer and image processor lie, if not beside the model (PickScore_v1 uses
            laion/CLIP-ViT-H-14-laion2B-s32B-b79K).
        scale: Flow-GRPO's divisor, 26.
        batch_size: images of one forward. Batches are padded to it, so that a score does not depend on its neighbours.
        device: `auto` takes the GPU where there is one.
    """

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = None,
        scale: float = 26.0,
        batch_size: int = 16,
        device: str = "auto",
    ) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        folder = resolve_model(model)
        beside = folder if processor is None else resolve_model(processor)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.torch, self.device = torch, device
        self.tokenizer = AutoTokenizer.from_pretrained(beside)
        self.image_processor = CLIPImageProcessor.from_pretrained(beside)
        self.model = CLIPModel.from_pretrained(folder, use_safetensors=True).eval().to(self.device)
        self.max_length = self.model.config.text_config.max_position_embeddings
        self.scale, self.batch_size = scale, batch_size

    @classmethod
    def check(cls, model: str = "yuvalkirstain/PickScore_v1", **_: object) -> None:
        """Refuse a model path that does not exist, before any actor starts.

        Raises:
            UserError: a local-looking path without a model.
        """
        folder = resolve_model(model)
        looks_local = folder.startswith((".", "/", "~")) or folder.count("/") > 1
        if looks_local and not (Path(folder) / "config.json").exists():
            raise UserError(f"scorer pickscore: no model at `{folder}`; give a folder with config.json or a hub id")

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        starts = range(0, len(prompts), self.batch_size)
        with self.torch.no_grad():
            chunks = [slice(start, start + self.batch_size) for start in starts]
            scores = [self._batch(images_NHWC[rows], list(prompts[rows])) for rows in chunks]
        return np.concatenate(scores) if scores else np.zeros(0)

    def _batch(self, images_NHWC: np.ndarray, prompts: list[str]) -> np.ndarray:
        padding = self.batch_size - len(prompts)
        prompts = prompts + prompts[:1] * padding
        images = [Image.fromarray(image) for image in images_NHWC]
        pixels_NCHW = self.image_processor(images + images[:1] * padding, return_tensors="pt")["pixel_values"]
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        output = self.model(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
            pixel_values=pixels_NCHW.to(self.device),
        )
        cosine_N = (output.text_embeds * output.image_embeds).sum(-1)
        score_N = self.model.logit_scale.exp() * cosine_N / self.scale
        return score_N.double().cpu().numpy()[: self.batch_size - padding]
