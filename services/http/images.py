"""Encodes images, and decodes images from untrusted senders."""

import base64
import io
from enum import StrEnum

import numpy as np
from PIL import Image, UnidentifiedImageError

from services.http.image_structure import FORMATS, PNG_MAGIC, PPM_MAGIC, BadImage, read_size

MAX_ASPECT = 32
"""The greatest ratio of the longer side to the shorter. Scorers resize by the shorter side, so a strip one pixel wide
would grow to gigabytes."""
ORIENTATION = 0x0112
"""The EXIF tag with the orientation of the camera."""
UPRIGHT: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns an image of each orientation upright."""


def image_pixels(data: bytes, max_pixels: int) -> int:
    """The number of pixels of an encoded image, read without decoding it.

    Raises:
        BadImage: as `decode_image` raises, for faults that show without decoding.
    """
    width, height = read_size(data)
    size = f"has {width}x{height} pixels"
    if width * height > max_pixels:
        raise BadImage(f"{size}; at most {max_pixels} are scored")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(f"{size}; one side is at most {MAX_ASPECT} times the other")
    return width * height


def decode_image(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode an image to uint8 (H, W, 3), as a viewer shows it on white.

    The first of several frames is used, turned upright by its EXIF orientation, with the upper 8 of 16 bits. The time
    that this takes is not bounded.

    Raises:
        BadImage: the image is broken, has another format, is too large or too long and thin, or has more parts than an
            encoder writes.
    """
    pixels = image_pixels(data, max_pixels)
    if data.startswith(PPM_MAGIC):
        width, height = read_size(data)
        return np.frombuffer(data, np.uint8, offset=len(data) - 3 * pixels).reshape(height, width, 3)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height != pixels:
                raise BadImage("cannot be decoded: it contains two different sizes")
            turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
            upright = image.transpose(turn) if turn is not None else image
            return _grey16(upright) if image.mode.startswith("I") else _on_white(upright)
    except BadImage:
        raise
    except UnidentifiedImageError as error:  # its message contains the address of our buffer
        raise BadImage("cannot be decoded: its header is broken") from error
    except Exception as error:  # on malformed images Pillow raises any error, also KeyError and TypeError
        raise BadImage(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def _on_white(image: Image.Image) -> np.ndarray:
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))


def _grey16(image: Image.Image) -> np.ndarray:
    """Reduce a 16-bit grey image to its upper 8 bits. `convert` would clip it at 255 instead."""
    grey_HW = np.asarray(image)
    seen_HW = (grey_HW >> 8).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        seen_HW[grey_HW == transparent] = 255
    return np.repeat(seen_HW[..., None], 3, axis=2)


class Encoding(StrEnum):
    """How an image is sent."""

    PNG = "png"
    """Without loss."""
    JPEG = "jpeg"
    """At quality 95 with full colour resolution. Scores change a little."""
    RAW = "raw"
    """The pixels as they are, in a PPM: more bytes, and no time for packing."""


JPEG_QUALITY = 95


def encode_image(image_HWC: np.ndarray, encoding: Encoding = Encoding.PNG) -> bytes:
    """Encode uint8 (H, W, 3)."""
    if encoding == Encoding.RAW:
        height, width, _ = image_HWC.shape
        return b"P6\n%d %d\n255\n" % (width, height) + image_HWC.tobytes()
    buffer = io.BytesIO()
    image = Image.fromarray(image_HWC)
    if encoding == Encoding.JPEG:
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_shrunk(image: Image.Image, max_side_px: int, quality: int = 88) -> bytes:
    """Encode an image as a JPEG, shrunk to at most this many pixels a side."""
    shrunk, buffer = image.convert("RGB"), io.BytesIO()
    shrunk.thumbnail((max_side_px, max_side_px))
    shrunk.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def kind_of(content: bytes) -> str:
    """`png` or `jpeg`, for an image that was encoded here."""
    return "png" if content.startswith(PNG_MAGIC) else "jpeg"


def data_url(content: bytes) -> str:
    """A PNG or JPEG as a data URL."""
    return f"data:image/{kind_of(content)};base64,{base64.b64encode(content).decode()}"
