"""Images as bytes: encoded without loss, decoded with care for who sent them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")


MAX_ASPECT = 32
"""Longer side over shorter. Scorers resize the shorter side, so a strip a pixel wide grows to gigabytes in them."""


class BadImage(Exception):
    """An image that cannot be scored; says why."""


def image_pixels(data: bytes, max_pixels: int) -> int:
    """Pixels of an encoded image, read from its header.

    Raises:
        BadImage: as `decode_image`, as far as the header shows it.
    """
    with _opened(data, max_pixels) as image:
        return image.width * image.height


def decode_image(data: bytes, max_pixels: int) -> np.ndarray:
    """uint8 (H, W, 3) of an encoded image: the first of several frames, without alpha, the upper 8 of 16 bits.

    Raises:
        BadImage: of another format, too large, too long and thin, or broken.
    """
    with _opened(data, max_pixels) as image:
        if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip at 255
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The image, not decoded yet; whatever is wrong with it in here is a BadImage."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size = f"has {image.width}x{image.height} pixels"
            if image.width * image.height > max_pixels:
                raise BadImage(f"{size}; at most {max_pixels} are scored")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise BadImage(f"{size}; one side is at most {MAX_ASPECT} times the other")
            yield image
    except UnidentifiedImageError as error:
        raise BadImage(f"is none of {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"cannot be decoded: {error}") from error


def encode_image(image_HWC: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as a PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
