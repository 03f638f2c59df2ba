"""The LAION aesthetic predictor: how beautiful people find an image, about 1 to 10. The prompt is not read.

It is CLIP-L/14 with a head of five linear layers (github.com/christophschuhmann/improved-aesthetic-predictor,
sac+logos+ava1-l14-linearMSE.pth). The head reads the unit vector of the image's embedding.

PyTorch and transformers are imported only when a scorer is built: the driver imports this file to check a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from services.base.devices import device_of
from services.base.paths import model_file, resolve_model
from services.scoring.pixels import batches_of, clip_pixels
from services.scoring.weights import load_exactly, weights_file

if TYPE_CHECKING:
    import torch

CLIP = "openai/clip-vit-large-patch14"


class Aesthetic:
    """The output of the head.

    Args:
        head: the weights of the head as a .safetensors file.
        model: the folder or hub id of the CLIP model.
        batch_size: images in one forward. Smaller batches are padded, so that a score does not depend on other images.
        device: `auto` is a GPU if there is one.
    """

    def __init__(self, head: str, model: str = CLIP, batch_size: int = 16, device: str = "auto") -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import CLIPModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        folder, weights = resolve_model(model), weights_file("scorer aesthetic", head)
        self.torch, self.device, self.batch_size = torch, device_of(device), batch_size
        self.pixels = clip_pixels(CLIPImageProcessorPil.from_pretrained(folder), self.device)
        self.model = CLIPModel.from_pretrained(folder, use_safetensors=True).eval().to(self.device)
        self.head = linear_head(self.model.config.projection_dim)
        state = {key.removeprefix("layers."): weight for key, weight in load_file(weights).items()}
        load_exactly("scorer aesthetic", self.head, state, weights)
        self.head.eval().to(self.device)

    @staticmethod
    def check(head: str, model: str = CLIP, **_: object) -> None:
        """Check that the files exist, before any actor starts.

        Raises:
            UserError: the head or the model is missing. The message names it.
        """
        weights_file("scorer aesthetic", head)
        model_file("scorer aesthetic", model, "config.json")
        model_file("scorer aesthetic", model, "preprocessor_config.json")

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        batches = batches_of(len(prompts), self.batch_size)
        pixels = self.pixels(images_NHWC, batches, self.batch_size)
        with self.torch.no_grad():
            scores = [
                self._batch(pixels_BCHW)[: len(batch)] for batch, pixels_BCHW in zip(batches, pixels, strict=True)
            ]
        return np.concatenate(scores) if scores else np.zeros(0)

    def _batch(self, pixels_BCHW: torch.Tensor) -> np.ndarray:
        embedding_BD = self.model.get_image_features(pixel_values=pixels_BCHW).pooler_output
        return self.head(self.torch.nn.functional.normalize(embedding_BD, dim=-1))[:, 0].double().cpu().numpy()


def linear_head(width: int) -> torch.nn.Sequential:
    """Five linear layers from an embedding to a number, without activations. ImageReward has the same head."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
        nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
