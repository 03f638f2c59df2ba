"""Encoded images, whole and by their parts."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))


def encoded(image: Image.Image, format_: str = "PNG", **options) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def repeated_scans(times: int) -> bytes:
    """A progressive JPEG whose last scan comes `times` more often."""
    whole = encoded(NOISE, "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + scan * times + whole[-2:]
