"""Diversity of the images of one prompt: reinforcement learning narrows it while the reward rises."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from services.scoring.clip import DualEncoder, check_clip


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
        starts = range(0, count, self.batch_size)
        with self.torch.no_grad():
            embedding_ND = np.concatenate([self._embed(images_NHWC[i : i + self.batch_size]) for i in starts])
        cosine_NN = embedding_ND @ embedding_ND.T
        return 1 - (cosine_NN.sum(1) - cosine_NN.diagonal()) / (count - 1)

    def _embed(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Unit embeddings of at most `batch_size` images, (N, D) float64. The batch is padded."""
        images = [Image.fromarray(image) for image in images_NHWC]
        padding = self.batch_size - len(images)
        output = self.model.get_image_features(self._pixels(images + images[:1] * padding).to(self.device))
        embedding_BD = output.pooler_output.double().cpu().numpy()
        return (embedding_BD / np.linalg.norm(embedding_BD, axis=1, keepdims=True))[: len(images)]
