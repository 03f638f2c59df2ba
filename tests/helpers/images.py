"""Encoded images, whole and by their parts."""

import io
import struct
import zlib

from PIL import Image


def encoded(image: Image.Image, format_: str = "PNG", **options) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
