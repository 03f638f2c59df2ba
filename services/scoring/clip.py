"""Scorers that are a CLIP or SigLIP model: two encoders, whose embeddings of a text and of an image are compared.

PyTorch and transformers are imported only when a scorer is built: the driver imports this file to check a recipe.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from services.base.devices import device_of
from services.base.errors import UserError
from services.base.paths import model_file, resolve_model
from services.scoring.pixels import Pixels, batches_of, clip_pixels
from services.scoring.texts import TextEmbeddings

if TYPE_CHECKING:
    import torch


def check_clip(what: str, model: str, processor: str | None) -> None:
    """Check that the model and the processor exist, and that the tokenizer's package is installed.

    Raises:
        UserError: one does not exist. The message begins with `what`.
    """
    model_file(what, model, "config.json")
    tokenizer = json.loads(model_file(what, processor or model, "tokenizer_config.json").read_text())
    if tokenizer.get("tokenizer_class") == "SiglipTokenizer" and importlib.util.find_spec("sentencepiece") is None:
        raise UserError(
            f"{what}: the tokenizer of `{processor or model}` needs a package: pip install 'tempflow[siglip]'"
        )


class DualEncoder:
    """cos(text, image) by a CLIP or SigLIP model.

    Args:
        model: the folder or hub id of the model.
        processor: the folder or hub id of the tokenizer and image processor; the model's if not given.
        batch_size: images in one forward. Smaller batches are padded, so that a score does not depend on other images.
        device: `auto` is a GPU if there is one.

    Raises:
        UserError: the model is of another kind.
    """

    def __init__(self, model: str, processor: str | None = None, batch_size: int = 16, device: str = "auto") -> None:
        import torch
        from transformers import AutoTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        folder = resolve_model(model)
        beside = folder if processor is None else resolve_model(processor)
        self.torch, self.device, self.batch_size = torch, device_of(device), batch_size
        self.model = self._load(folder).eval().to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(beside)
        self.is_siglip = self.model.config.model_type == "siglip"
        # With torchvision installed, CLIPImageProcessor would be another back end with different pixel values.
        self.image_processor: Any = (
            SiglipImageProcessorPil.from_pretrained(beside)
            if self.is_siglip
            else CLIPImageProcessorPil.from_pretrained(beside)
        )
        self.max_length = self.model.config.text_config.max_position_embeddings
        self.pixels = self._preprocessing()
        self.texts = TextEmbeddings(self._embed_texts, batch_size)

    def _load(self, folder: str) -> Any:
        """The model, with the methods `get_text_features` and `get_image_features`."""
        from transformers import AutoConfig, CLIPModel, SiglipModel

        kinds = {"clip": CLIPModel, "siglip": SiglipModel}
        model_type = AutoConfig.from_pretrained(folder).model_type
        if model_type not in kinds:
            raise UserError(f"`{folder}` is a model of type {model_type}; give a CLIP or SigLIP model")
        return kinds[model_type].from_pretrained(folder, use_safetensors=True)

    def _preprocessing(self) -> Pixels:
        """What turns images into pixels (B, 3, H, W) for the model."""
        return clip_pixels(self.image_processor, self.device)

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        batches = batches_of(len(prompts), self.batch_size)
        pixels = self.pixels(images_NHWC, batches, self.batch_size)
        with self.torch.no_grad():
            texts = self.texts(prompts)
            scores = [
                self._batch(pixels_BCHW, [texts[i] for i in batch])
                for batch, pixels_BCHW in zip(batches, pixels, strict=True)
            ]
        return np.concatenate(scores) if scores else np.zeros(0)

    def _batch(self, pixels_BCHW: torch.Tensor, texts: list[torch.Tensor]) -> np.ndarray:
        image_BD = self._unit(self.model.get_image_features(pixel_values=pixels_BCHW).pooler_output)
        text_BD = self.torch.stack(texts + texts[:1] * (self.batch_size - len(texts)))
        score_B = self._score((text_BD * image_BD).sum(-1))
        return score_B.double().cpu().numpy()[: len(texts)]

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        """The unit vectors of texts, (B, D)."""
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        # SigLIP was trained to read the padding.
        mask = {} if self.is_siglip else {"attention_mask": tokens["attention_mask"].to(self.device)}
        return self._unit(self.model.get_text_features(tokens["input_ids"].to(self.device), **mask).pooler_output)

    def _unit(self, embedding_BD: torch.Tensor) -> torch.Tensor:
        """Unit vectors, computed as in the model's own forward: CLIP and SigLIP compute the norm in different ways."""
        if self.is_siglip:
            return embedding_BD / embedding_BD.norm(dim=-1, keepdim=True)
        return embedding_BD / embedding_BD.pow(2).sum(dim=-1, keepdim=True).pow(0.5)

    def _score(self, cosine_N: torch.Tensor) -> torch.Tensor:
        return cosine_N


class Clip(DualEncoder):
    """cos(text, image) by any CLIP or SigLIP model. The options are those of `DualEncoder`.

    SigLIP is google/siglip-… or google/siglip2-…-patch…; the variants with a free number of patches (NaFlex) are not
    supported.
    """

    @staticmethod
    def check(model: str, processor: str | None = None, **_: object) -> None:
        """Check that the model exists, before any actor starts."""
        check_clip("scorer clip", model, processor)


class ClipSimilarity(DualEncoder):
    """exp(logit_scale) · cos(text, image) / scale, for PickScore and CLIPScore.

    Args:
        scale: the score is divided by this number.
    """

    def __init__(
        self, model: str, scale: float, processor: str | None = None, batch_size: int = 16, device: str = "auto"
    ) -> None:
        super().__init__(model, processor, batch_size, device)
        self.scale = scale

    def _score(self, cosine_N: torch.Tensor) -> torch.Tensor:
        return self.model.logit_scale.exp() * cosine_N / self.scale
