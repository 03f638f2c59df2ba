"""Scorers that fail, in a module that a recipe of the tests can name."""

from pathlib import Path

BROKEN_SCORERS = """
import numpy as np

class Raises:
    def __call__(self, images_NHWC, prompts):
        raise OSError("the model file is gone")

class SomeNaN:
    def __init__(self, percent):
        self.percent = percent

    def __call__(self, images_NHWC, prompts):
        sums = images_NHWC.sum(axis=(1, 2, 3))
        return np.where(sums % 101 % 100 < self.percent, np.nan, sums / images_NHWC[0].size / 255)
"""


def write_scorers(folder: Path) -> None:
    """Write the module `broken`, with the scorers `Raises` and `SomeNaN`."""
    (folder / "broken.py").write_text(BROKEN_SCORERS)
