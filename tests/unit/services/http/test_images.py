"""Images that strangers send: how they look once decoded, what is refused by structure, and what is broken."""

import io
import random
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from services.http.image_structure import MAX_CHUNKS, MAX_PARTS, MAX_SCANS, BadImage, read_size
from services.http.images import Encoding, decode_image, encode_image, image_pixels
from tests.helpers.images import NOISE, chunk, encoded, repeated_scans

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def png(*parts: bytes, width: int = 8, height: int = 8, kind: int = 2, pixels: bytes = bytes(8 * 25)) -> bytes:
    """A PNG with `parts` before its pixels, promising what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(parts) + end


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_images_of_the_three_formats(format_):
    buffer = io.BytesIO()
    Image.fromarray(RED).save(buffer, format_, quality=95)
    assert np.abs(decode_image(buffer.getvalue(), 100).astype(int) - RED).max() < 40
    assert decode_image(encode_image(RED), 100).tolist() == RED.tolist()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GIF89a" + b"\0" * 20, "none of PNG"),
        (b"", "none of PNG"),
        (encode_image(RED)[:-30], "cannot be decoded"),
        (encode_image(np.zeros((110, 10, 3), np.uint8)), "10x110 pixels"),
        (png(width=40_000, height=25_000), "pixels"),
        (png()[:20], "ends before its size"),
        (repeated_scans(3000), f"more than {MAX_SCANS} scans"),
        (png(*[chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**6)))] * 1000), f"more than {MAX_CHUNKS} chunks"),
        (png(*[chunk(b"IDAT", b"")] * 1000), "too many chunks"),
        (encoded(NOISE, "JPEG").replace(b"\xff\xdb", b"\xff\xfe\0\2" * MAX_PARTS + b"\xff\xdb", 1), "segments"),
        (encoded(NOISE, "WEBP") + b"EXIF\0\0\0\0" * 1000, f"more than {MAX_CHUNKS} chunks"),
        (encode_image(np.zeros((1, 33, 3), np.uint8)), "at most 32 times the other"),
        (encode_image(np.zeros((110, 10, 3), np.uint8), Encoding.RAW), "10x110 pixels"),
        (encode_image(RED, Encoding.RAW)[:-1], "71 bytes for the pixels of 6x4"),
        (encode_image(RED, Encoding.RAW) + b"0", "73 bytes for the pixels of 6x4"),
        (b"P6\n6 4\n65535\n" + bytes(144), "a PPM whose head"),
        (b"P6\n0 4\n255\n", "a PPM whose head"),
        (b"P6\n# 6 4\n6 4\n255\n" + bytes(72), "a PPM whose head"),
        (b"P6", "a PPM whose head"),
        (b"P5\n6 4\n255\n" + bytes(24), "none of PNG"),
    ],
)
def test_a_bad_image_says_why(data, reason):
    """Before it is decoded, or at least at once: none of these takes a decoder's time."""
    started = time.process_time()
    with pytest.raises(BadImage, match=reason):
        decode_image(data, 1000)
    assert time.process_time() - started < 0.5


def test_16_bits_of_grey_keep_their_upper_8():
    """Pillow's own conversion clips at 255, which is nearly black, and makes almost every image white."""
    grey_HW = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2500
    decoded = decode_image(encoded(Image.fromarray(grey_HW)), 100)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, np.repeat((grey_HW >> 8)[..., None], 3, axis=2))


def animation(format_: str) -> bytes:
    first, second = Image.fromarray(RED), Image.fromarray(255 - RED)
    return encoded(first, format_, save_all=True, append_images=[second], lossless=True)


@pytest.mark.parametrize("data", [animation("PNG"), animation("WEBP")])
def test_the_first_frame_counts(data):
    np.testing.assert_array_equal(decode_image(data, 100), RED)


ALPHA_HW = np.array([[0, 85, 255]], np.uint8)
ON_WHITE = [[[255, 255, 255], [255, 170, 170], [255, 0, 0]]]
"""Red that is hidden, a third and whole."""


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_what_is_transparent_is_white(format_):
    image = Image.fromarray(np.dstack([np.full((1, 3, 3), (255, 0, 0), np.uint8), ALPHA_HW]))
    assert decode_image(encoded(image, format_, lossless=True, exact=True), 100).tolist() == ON_WHITE


def test_a_transparent_colour_is_white_in_every_mode():
    grey_HW = np.array([[0, 128]], np.uint8)
    for image in (
        Image.fromarray(grey_HW),
        Image.fromarray(np.dstack([grey_HW] * 3)),
        Image.fromarray(grey_HW).convert("P"),
        Image.fromarray(grey_HW.astype(np.uint16) << 8),
    ):
        transparent = (0, 0, 0) if image.mode == "RGB" else 0
        seen = decode_image(encoded(image, transparency=transparent), 100)
        assert seen.tolist() == [[[255] * 3, [128] * 3]], image.mode


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_scored_as_it_is_seen(format_, orientation):
    """Each orientation, stored as cameras do, is the same picture: dark at the upper left, bright elsewhere."""
    seen_HW = np.full((32, 64), 200, np.uint8)
    seen_HW[:16, :32] = 20
    as_stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(as_stored[orientation](seen_HW))).convert("RGB")
    decoded = decode_image(encoded(stored, format_, exif=exif.tobytes(), quality=95), 10_000)
    assert decoded.shape == (32, 64, 3)
    assert np.abs(decoded[..., 0].astype(int) - seen_HW).max() < 20


@pytest.mark.parametrize("encoding", [Encoding.PNG, Encoding.RAW])
def test_what_we_write_reads_the_same(encoding):
    """Training scores arrays, and what it sends to another pool has neither alpha nor an orientation."""
    image = np.asarray(NOISE)
    np.testing.assert_array_equal(decode_image(encode_image(image, encoding), 1000), image)


def test_each_encoding_is_what_it_says():
    """JPEG keeps full colour resolution: a red pixel beside blue ones stays red. Raw is what Pillow knows as PPM."""
    image = np.full((16, 16, 3), (0, 0, 255), np.uint8)
    image[5, 5] = (255, 0, 0)
    opened = {encoding: Image.open(io.BytesIO(encode_image(image, encoding))) for encoding in Encoding}
    assert {encoding: picture.format for encoding, picture in opened.items()} == {
        "png": "PNG", "jpeg": "JPEG", "raw": "PPM"
    }  # fmt: skip
    np.testing.assert_array_equal(np.asarray(opened[Encoding.RAW]), image)
    assert np.abs(np.asarray(opened[Encoding.JPEG])[5, 5].astype(int) - image[5, 5]).max() < 20


INDEXED = {"kind": 3, "pixels": bytes(8 * 9)}


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"tRNS", b"\0"), **INDEXED),
        png(chunk(b"tRNS", b"\xff" * 300), **INDEXED),
        png(chunk(b"PLTE", b""), **INDEXED),
        png(chunk(b"iCCP", b"")),
        png(chunk(b"iCCP", b"name\0")),
        png(chunk(b"tRNS", b"")),
        png(chunk(b"pHYs", b"")),
        png(chunk(b"IHDR", b"")),
    ],
    ids=str.split("tRNS-no-PLTE long-tRNS empty-PLTE empty-iCCP iCCP-no-profile empty-tRNS empty-pHYs empty-IHDR"),
)
def test_whatever_pillow_raises_is_a_bad_image(data):
    """It raises AssertionError, ValueError, struct.error and others, by version; some it may learn to read."""
    try:
        outcome = decode_image(data, 100).shape
    except BadImage as error:
        outcome = str(error).partition(":")[0]
    assert outcome in ((8, 8, 3), "cannot be decoded")


def test_an_error_that_nobody_expected_is_that_images_own(monkeypatch):
    def broken(*_: object, **__: object):
        raise AssertionError

    data = encode_image(RED)
    monkeypatch.setattr("services.http.images.Image.open", broken)
    with pytest.raises(BadImage, match="cannot be decoded: AssertionError"):
        decode_image(data, 100)


def test_sizes_read_from_structure_are_those_of_pillow():
    for size in ((1, 1), (7, 5), (20, 24), (300, 200)):
        image = NOISE.resize(size)
        for data in (
            encoded(image),
            encoded(image, "JPEG"),
            encoded(image, "JPEG", progressive=True, restart_marker_blocks=1, comment=b"\xff\xda" * 500),
            encoded(image, "WEBP"),
            encoded(image, "WEBP", lossless=True),
            encoded(image.convert("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
            encoded(image, "WEBP", save_all=True, append_images=[image.rotate(90)] * 200),
            encoded(image, "PNG", save_all=True, append_images=[image.rotate(90)] * 200),
        ):
            assert read_size(data) == size
            assert decode_image(data, 10**6).shape == (*size[::-1], 3)


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    data = encoded(Image.fromarray(RED).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert decode_image(data, 100).shape == (4, 6, 3)


def test_a_broken_image_is_a_bad_image_and_nothing_else():
    whole = [encoded(NOISE), encoded(NOISE.convert("P"), transparency=3), encoded(NOISE, "JPEG", progressive=True)]
    whole += [encoded(NOISE, "WEBP"), encoded(NOISE, "WEBP", lossless=True), animation("PNG"), animation("WEBP")]
    whole += [encode_image(np.asarray(NOISE), Encoding.RAW)]
    rng, bad = random.Random(0), 0
    for _ in range(4000):
        data = bytearray(rng.choice(whole))
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randint(0, 5) if data else 0):
            data[rng.randrange(min(len(data), rng.choice((64, 10**6))))] = rng.choice((0, 1, 127, 128, 255))
        try:
            assert image_pixels(bytes(data), 10_000) <= 10_000
            decoded = decode_image(bytes(data), 10_000)
            assert decoded.dtype == np.uint8
            assert decoded.shape[2] == 3
        except BadImage:
            bad += 1
    assert 1000 < bad < 4000
