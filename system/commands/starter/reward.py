"""A reward to edit. A scorer gets images and their prompts, and returns a number for each image."""

import numpy as np


class Reward:
    """How bright an image is, from 0 (black) to 1 (white). Replace it with what you want more of.

    A model that the score needs is loaded in the constructor, which runs once in each process.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale  # an option: `options: {scale: 2.0}` in the recipe

    def __call__(self, images_NHWC: np.ndarray, prompts: list[str]) -> np.ndarray:
        """Scores (N,) of N images, uint8 (N, height, width, 3). NaN means that an image has no score."""
        return self.scale * images_NHWC.mean(axis=(1, 2, 3)) / 255
