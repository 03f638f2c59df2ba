"""The images of all contenders, each encoded small enough for the page as soon as it is made."""

import base64
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from system.loop.heldout import HeldOut

MAX_SIDE_PX = 320
"""Larger images are shrunk to this size and stored as JPEG."""
PIXELATED_SIDE_PX = 128
"""Images up to this size are stored as PNG and shown with sharp pixels, not smoothed."""


class Pictures:
    """Data URIs of images by contender, set and number of the image in the set."""

    def __init__(self) -> None:
        self._uris: dict[tuple[str, str, int], str] = {}
        self.small = True
        """Whether all images are small enough to be shown with sharp pixels."""

    def watcher(self, model: str) -> Callable[[HeldOut, int, np.ndarray], None]:
        """What takes the images of a contender."""

        def watch(of: HeldOut, first: int, images_NHWC: np.ndarray) -> None:
            for i, image_HWC in enumerate(images_NHWC):
                self._uris[model, of.name, first + i] = self._encoded(image_HWC)

        return watch

    def uri(self, model: str, name: str, number: int) -> str:
        return self._uris[model, name, number]

    def _encoded(self, image_HWC: np.ndarray) -> str:
        image, buffer = Image.fromarray(image_HWC), io.BytesIO()
        if max(image.size) <= PIXELATED_SIDE_PX:
            kind = "png"
            image.save(buffer, "PNG")
        else:
            kind, self.small = "jpeg", False
            image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
            image.save(buffer, "JPEG", quality=85)
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
