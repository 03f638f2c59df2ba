"""Scorers that are a CLIP model. PickScore and CLIPScore differ in weights and scale.

PyTorch and transformers are imported only when a scorer is built: the driver imports this file to check a recipe.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from services.base.devices import device_of
from services.base.paths import model_file, resolve_model


def check_clip(what: str, model: str, processor: str | None) -> None:
    """Check that the model and the processor exist.

    Raises:
        UserError: one does not exist. The message begins with `what`.
    """
    model_file(what, model, "config.json")
    model_file(what, processor or model, "tokenizer_config.json")


class ClipSimilarity:
    """exp(logit_scale) · cos(text, image) / scale.

    Args:
        model: the folder or hub id of a CLIP model.
        processor: the folder or hub id of the tokenizer and image processor; the model's if not given.
        scale: the score is divided by this number.
        batch_size: images in one forward. Smaller batches are padded, so that a score does not depend on other images.
        device: `auto` is a GPU if there is one.
    """

    def __init__(
        self, model: str, scale: float, processor: str | None = None, batch_size: int = 16, device: str = "auto"
    ) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        folder = resolve_model(model)
        beside = folder if processor is None else resolve_model(processor)
        self.torch, self.device = torch, device_of(device)
        self.tokenizer = AutoTokenizer.from_pretrained(beside)
        # With torchvision installed, CLIPImageProcessor would be another back end with different pixel values.
        self.image_processor = CLIPImageProcessorPil.from_pretrained(beside)
        self.model = CLIPModel.from_pretrained(folder, use_safetensors=True).eval().to(self.device)
        self.max_length = self.model.config.text_config.max_position_embeddings
        self.scale, self.batch_size = scale, batch_size

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
