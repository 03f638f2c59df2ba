"""The images of all contenders, each encoded small enough for the page as soon as it is made."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from services.http.images import data_url, encode_image, encode_shrunk
from system.loop.heldout import HeldOut
from system.report.pictures import PIXELATED_SIDE_PX

MAX_SIDE_PX = 320
"""Images that are not shown with sharp pixels are shrunk to this size and stored as JPEG. The others are PNG."""


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
        if max(image_HWC.shape[:2]) <= PIXELATED_SIDE_PX:
            return data_url(encode_image(image_HWC))
        self.small = False
        return data_url(encode_shrunk(Image.fromarray(image_HWC), MAX_SIDE_PX, quality=85))
