"""Diversity of the images of one prompt: reinforcement learning narrows it while the reward rises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from services.scoring.clip import DualEncoder, check_clip
from services.scoring.pixels import batches_of

if TYPE_CHECKING:
    import torch


class Diversity(DualEncoder):
    """The mean cosine distance of an image to the other images of its prompt, by the image encoder of a CLIP or SigLIP.

    With unit embeddings e₁ … e_G, image i has the score 1 − Σ_{j≠i} eᵢ·eⱼ / (G − 1). The mean over the prompt's images
    is the mean distance of all pairs. 0 means that all images are the same. A single image has no score.

    The options are those of `DualEncoder`.
    """

    groupwise = True

    @staticmethod
    def check(model: str, processor: str | None = None, **_: object) -> None:
        """Check that the model exists, before any actor starts."""
        check_clip("scorer diversity", model, processor)

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        count = len(images_NHWC)
        if count < 2:
            return np.full(count, np.nan)
        batches = batches_of(count, self.batch_size)
        pixels = self.pixels(images_NHWC, batches, self.batch_size)
        with self.torch.no_grad():
            embeddings = [
                self._embed(pixels_BCHW)[: len(batch)] for batch, pixels_BCHW in zip(batches, pixels, strict=True)
            ]
        embedding_ND = np.concatenate(embeddings)
        cosine_NN = embedding_ND @ embedding_ND.T
        return 1 - (cosine_NN.sum(1) - cosine_NN.diagonal()) / (count - 1)

    def _embed(self, pixels_BCHW: torch.Tensor) -> np.ndarray:
        """Unit embeddings of a batch, (B, D) float64."""
        output = self.model.get_image_features(pixel_values=pixels_BCHW)
        embedding_BD = output.pooler_output.double().cpu().numpy()
        return embedding_BD / np.linalg.norm(embedding_BD, axis=1, keepdims=True)
