"""Images as bytes: encoded without loss, decoded with care for who sent them."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")


class BadImage(Exception):
    """An image that cannot be scored; says why."""


def decode_image(data: bytes, max_pixels: int) -> np.ndarray:
    """uint8 (H, W, 3) of an encoded image; its size is read before it is decoded.

    Raises:
        BadImage: of another format, too large, or broken.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise BadImage(f"has {image.width}x{image.height} pixels; at most {max_pixels} are scored")
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise BadImage(f"is none of {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"cannot be decoded: {error}") from error


def encode_image(image_HWC: np.ndarray) -> bytes:
    """uint8 (H, W, 3) as a PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
