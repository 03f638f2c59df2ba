"""JPEG size: a reward without a model, for tests and first steps (as in DDPO, arXiv 2305.13301)."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


class JpegSize:
    """The size of the image as a JPEG, in kB.

    Args:
        sign: 1 rewards detail (incompressibility), −1 rewards compressibility.
        quality: the quality of the JPEG, 1 to 95.
    """

    def __init__(self, sign: int = 1, quality: int = 95) -> None:
        self.sign, self.quality = sign, quality

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return np.array([self.sign * self._kilobytes(image) for image in images_NHWC])

    def _kilobytes(self, image_HWC: np.ndarray) -> float:
        buffer = io.BytesIO()
        Image.fromarray(image_HWC).save(buffer, "JPEG", quality=self.quality)
        return buffer.tell() / 1000
