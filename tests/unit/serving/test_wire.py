"""The pool's two formats and its limits on images, without Serve."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from services.images import BadImage, decode_image, encode_image
from services.serving.wire import (
    ARROW,
    JSON,
    Answer,
    BadRequest,
    read_answer,
    read_request,
    write_answer,
    write_request,
)

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def test_a_request_reads_the_same_from_both_formats():
    image = encode_image(RED)
    items = [{"prompt": "é", "image": base64.b64encode(image).decode()}]
    assert read_request(json.dumps({"items": items}).encode(), JSON) == (["é"], [image])
    assert read_request(write_request(["é"], [image]), ARROW) == (["é"], [image])


def test_an_answer_in_both_formats():
    answer = Answer({"a": np.array([1.5, np.nan]), "b": np.array([np.nan, 2.0])}, {1: "is broken"})
    body, kind = write_answer(answer, ARROW)
    back = read_answer(body)
    assert kind == ARROW
    np.testing.assert_array_equal(back.scores["a"], answer.scores["a"])
    assert back.errors == answer.errors
    body, kind = write_answer(answer, JSON)
    assert kind == JSON
    assert json.loads(body) == {
        "scores": {"a": [1.5, None], "b": [None, 2.0]},
        "errors": [{"index": 1, "reason": "is broken"}],
    }


def arrow(**columns) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", JSON),
        (b"{}", JSON),
        (b"[" * 100_000, JSON),
        (b'{"items": 3}', JSON),
        (b'{"items": [{"prompt": "x", "image": "no base64!"}]}', JSON),
        (b'{"items": [{"prompt": 3, "image": ""}]}', JSON),
        (b"", ARROW),
        (b"\xff" * 64, ARROW),
        (arrow(prompt=["x"]), ARROW),
        (arrow(prompt=["x"], image=[3]), ARROW),
        (arrow(prompt=[None], image=[b"x"]), ARROW),
        (b"x", "application/octet-stream"),
        (b"x", ""),
    ],
)
def test_a_body_that_is_no_request_is_refused(body, kind):
    with pytest.raises(BadRequest):
        read_request(body, kind)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_images_of_the_three_formats(format_):
    buffer = io.BytesIO()
    Image.fromarray(RED).save(buffer, format_, quality=95)
    assert np.abs(decode_image(buffer.getvalue(), 100).astype(int) - RED).max() < 40
    assert decode_image(encode_image(RED), 100).tolist() == RED.tolist()


def bomb() -> bytes:
    """A PNG whose header promises 10^9 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 99)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GIF89a" + b"\0" * 20, "none of PNG"),
        (b"", "none of PNG"),
        (encode_image(RED)[:-30], "cannot be decoded"),
        (encode_image(np.zeros((11, 10, 3), np.uint8)), "10x11 pixels"),
        (bomb(), "pixels"),
    ],
)
def test_a_bad_image_says_why(data, reason):
    with pytest.raises(BadImage, match=reason):
        decode_image(data, 100)
