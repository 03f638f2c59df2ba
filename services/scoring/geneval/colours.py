"""Names the colour of an object, with CLIP as a zero-shot classifier.

As in evaluation/evaluate_images.py of github.com/djghosh13/geneval: each of ten colours has three texts, whose unit
embeddings are averaged and made a unit vector again (github.com/LAION-AI/CLIP_benchmark). The colour is the one whose
vector is nearest to the embedding of the object's image. That image is the object's box, in which all pixels outside
the object's mask are grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from services.base.devices import device_of
from services.base.paths import resolve_model
from services.scoring.geneval.rule import COLOURS

if TYPE_CHECKING:
    import torch

TEXTS = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
BACKGROUND = (0x99, 0x99, 0x99)
BATCH_SIZE = 16


def cut_out(image_HWC: np.ndarray, mask_HW: np.ndarray, box: Sequence[float]) -> Image.Image:
    """The image of an object: its box, with grey outside of the mask."""
    left, top, right, bottom = (round(edge) for edge in box)
    shown_HWC = np.where(mask_HW[..., None], image_HWC, np.array(BACKGROUND, np.uint8))
    return Image.fromarray(shown_HWC).crop((left, top, right, bottom))


class Colours:
    """The colour classifier.

    Args:
        model: the folder or hub id of a CLIP model.
        device: `auto` is a GPU if there is one.
    """

    def __init__(self, model: str, device: str) -> None:
        import torch
        from transformers import AutoTokenizer, CLIPModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        folder = resolve_model(model)
        self.torch, self.device = torch, device_of(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = CLIPImageProcessorPil.from_pretrained(folder)
        self.model = CLIPModel.from_pretrained(folder, use_safetensors=True).eval().to(self.device)
        self.max_length = self.model.config.text_config.max_position_embeddings
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[str]:
        """The colour of each object, from its image and the name of its class."""
        found: list[str] = []
        with self.torch.no_grad():
            for start in range(0, len(pictures), BATCH_SIZE):
                part = slice(start, start + BATCH_SIZE)
                embedding_BD = self._embed_images(list(pictures[part]))
                for embedding_D, name in zip(embedding_BD, names[part], strict=False):
                    found.append(COLOURS[int((self._vectors(name) @ embedding_D).argmax())])
        return found

    def _vectors(self, name: str) -> torch.Tensor:
        """The unit vector of each colour, (10, D), for objects of a class."""
        if name not in self.known:
            texts = [text.format(colour=colour, name=name) for colour in COLOURS for text in TEXTS]
            tokens = self.tokenizer(
                texts, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
            )
            embedding_ND = self.model.get_text_features(**tokens.to(self.device)).pooler_output
            unit_CTD = self._unit(embedding_ND).reshape(len(COLOURS), len(TEXTS), -1)
            self.known[name] = self._unit(unit_CTD.mean(dim=1))
        return self.known[name]

    def _embed_images(self, pictures: list[Image.Image]) -> torch.Tensor:
        """The embeddings of images, (BATCH_SIZE, D). The last rows are padding."""
        padded = pictures + pictures[:1] * (BATCH_SIZE - len(pictures))
        pixels_BCHW = self.image_processor(padded, return_tensors="pt")["pixel_values"]
        return self._unit(self.model.get_image_features(pixel_values=pixels_BCHW.to(self.device)).pooler_output)

    def _unit(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.torch.nn.functional.normalize(vectors, dim=-1)
