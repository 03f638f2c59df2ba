"""Reads the size of an encoded image without decoding it, and refuses images with parts that only slow a decoder."""

import re
import struct
from collections.abc import Iterator

FORMATS = ("PNG", "JPEG", "WEBP")
"""The formats that Pillow decodes. A PPM is pixels as they are, behind a line with their size."""
MAX_SCANS = 50
"""The most scans of a JPEG. Encoders write about 10. Each one makes a decoder visit every pixel again."""
MAX_PARTS = 1000
"""The most segments of a JPEG. Encoders write about 10, and one more for each 64 kB of metadata."""
MAX_CHUNKS = 100
"""The most chunks without pixels in a PNG or WebP. Each may contain a compressed text or profile. Encoders write about
10."""
MIN_DATA_BYTES = 512
"""The least average size of a chunk of pixels in a PNG. Encoders write 8 kB."""

PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PPM_MAGIC, PPM_HEAD = b"P6", re.compile(rb"P6\n([1-9]\d{0,5}) ([1-9]\d{0,5})\n255\n")
"""The head of a binary PPM with the width and the height, as `services.http.images` writes it."""
PIXELS_OF_PNG, PIXELS_OF_WEBP = {b"IDAT", b"fdAT", b"fcTL"}, {b"ANMF"}
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""The start of a JPEG's segment. In pixels, FF is followed by 00 or by one of the restart markers D0 to D7."""
BARE, END, SCAN = {0x01, 0xD8}, 0xD9, 0xDA
"""The markers without a length, the last marker, and the marker before the pixels of a scan."""
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""The markers of the segment that contains the size."""


class BadImage(Exception):
    """An image that cannot be scored. The message says why."""


def read_size(data: bytes) -> tuple[int, int]:
    """The width and height in an image's header. Reading them takes bounded time, whatever else the image contains.

    Raises:
        BadImage: the image has another format or no size, or more parts than an encoder writes.
    """
    try:
        if data.startswith(PNG_MAGIC):
            return _png_size(data)
        if data.startswith(JPEG_MAGIC):
            return _jpeg_size(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        if data.startswith(PPM_MAGIC):
            return _ppm_size(data)
    except struct.error as error:
        raise BadImage("cannot be decoded: it ends before its size") from error
    raise BadImage(f"is none of {', '.join(FORMATS)}, PPM")


def _png_size(data: bytes) -> tuple[int, int]:
    size = struct.unpack_from(">II", data, len(PNG_MAGIC) + 8)
    pixels, others = 0, 0
    for name, _ in _chunks(data, len(PNG_MAGIC), ">I4s", trailer=4):
        if name in PIXELS_OF_PNG:
            pixels += 1
        else:
            others += 1
        if pixels > MAX_CHUNKS + len(data) // MIN_DATA_BYTES:
            raise BadImage("its pixels are cut into too many chunks")
        _check_count(others, MAX_CHUNKS, "chunks without pixels")
        if name in {b"IEND", b"fdAT"}:  # only the first frame is decoded
            break
    return size


def _webp_size(data: bytes) -> tuple[int, int]:
    others = 0
    for name, _ in _chunks(data, 12, "<4sI", trailer=0):
        others += name not in PIXELS_OF_WEBP
        _check_count(others, MAX_CHUNKS, "chunks without pixels")
        if name in PIXELS_OF_WEBP:  # only the first frame is decoded
            break
    kind, at = data[12:16], 20
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (at + 4, at + 7))
        return width, height
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, at + 1)
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, at + 6)
    return width & 0x3FFF, height & 0x3FFF


def _chunks(data: bytes, at: int, head: str, trailer: int) -> Iterator[tuple[bytes, int]]:
    """The name and length of each chunk up to the end of the data. `head` is the format of both, in either order."""
    start = struct.calcsize(head)
    while at + start <= len(data):
        one, other = struct.unpack_from(head, data, at)
        name, length = (one, other) if isinstance(one, bytes) else (other, one)
        yield name, length
        at += start + length + trailer + (length % 2 if head.startswith("<") else 0)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    size, scans, parts, at = None, 0, 0, len(JPEG_MAGIC)
    while found := MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == END:
            break
        parts += 1
        _check_count(parts, MAX_PARTS, "segments")
        if marker in BARE:
            continue
        if marker == SCAN:
            scans += 1
            _check_count(scans, MAX_SCANS, "scans")
        elif marker in FRAMES and not scans:
            height, width = struct.unpack_from(">HH", data, at + 3)
            size = width, height
        at += struct.unpack_from(">H", data, at)[0] if at + 2 <= len(data) else 2
    if size is None:
        raise BadImage("cannot be decoded: a JPEG without a size")
    return size


def _ppm_size(data: bytes) -> tuple[int, int]:
    head = PPM_HEAD.match(data)
    if head is None:
        raise BadImage("cannot be decoded: a PPM whose head is not `P6`, width and height, and `255`, a line each")
    width, height = int(head[1]), int(head[2])
    if len(data) - head.end() != 3 * width * height:
        raise BadImage(f"cannot be decoded: {len(data) - head.end()} bytes for the pixels of {width}x{height}")
    return width, height


def _check_count(count: int, most: int, of: str) -> None:
    if count > most:
        raise BadImage(f"has more than {most} {of}")
