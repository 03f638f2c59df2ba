"""The two formats of `POST /v1/score`: JSON with base64 images, and an Arrow IPC stream. No pickle in either.

A request is a table of `prompt` (text) and `image` (an encoded PNG, JPEG or WebP). An answer is a table with a column
a scorer (float64, null where there is no score) and `error` (text, null where the image was fine).
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from services.base.errors import first_line
from services.base.text import is_unicode

ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"
JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?', re.DOTALL)
STRINGS, STRUCTURE_BYTES = 16, 512
"""Of an item in JSON: strings, and bytes outside of them; a plain item has 4 and about 10."""


class BadRequest(Exception):
    """A request that cannot be read: an HTTP status, and why."""

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class Answer:
    """Scores (N,) by scorer with NaN for none, and the reasons of bad images by index."""

    scores: dict[str, np.ndarray]
    errors: dict[int, str]


def read_request(body: bytes, content_type: str, max_images: int) -> tuple[list[str], list[bytes]]:
    """Prompts and encoded images of a request; takes little more memory than the body has, whatever it says.

    Raises:
        BadRequest: neither format, not this table, empty, or more than `max_images`.
    """
    kind = media_type(content_type)
    if kind not in (ARROW, JSON):
        raise BadRequest(f"content type `{kind}`; send {JSON} or {ARROW}", 415)
    prompts, images = _read_arrow(body, max_images) if kind == ARROW else _read_json(body, max_images)
    if not prompts:
        raise BadRequest("the request has no images; send at least one")
    if len(prompts) > max_images:
        raise _count(len(prompts), max_images)
    return prompts, images


def media_type(content_type: str) -> str:
    """Without parameters."""
    return content_type.split(";")[0].strip().lower()


def _count(images: int | str, max_images: int) -> BadRequest:
    return BadRequest(f"{images} images; a request holds at most {max_images}", 413)


def _read_arrow(body: bytes, max_images: int) -> tuple[list[str], list[bytes]]:
    try:
        table = _arrow_table(body, max_images)
        table.validate(full=True)
        prompts, images = (table[name].to_pylist() for name in ("prompt", "image"))
    except (pa.ArrowException, KeyError, OSError, ValueError, struct.error) as error:
        raise BadRequest(f"not an Arrow stream with columns prompt and image: {first_line(error)}") from error
    if None in prompts or None in images:
        raise BadRequest("columns prompt and image have no nulls")
    return prompts, images


def _arrow_table(body: bytes, max_images: int) -> pa.Table:
    """The table, whose types and count are known to be harmless before a column is read.

    Encodings in which a few bytes stand for many (compression, runs, dictionaries, views, nulls) are refused.
    """
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(body)):
        if number > max_images:
            raise _count("too many", max_images)
        if message.type == "dictionary":
            raise BadRequest("a column is a dictionary; send plain text and binary")
        if message.type == "record batch" and _is_compressed(message):
            raise BadRequest("the Arrow stream is compressed; the images are already, send it as it is")
    stream = pa.ipc.open_stream(body)
    for name, kinds in (("prompt", (pa.string(), pa.large_string())), ("image", (pa.binary(), pa.large_binary()))):
        if (found := stream.schema.field(name).type) not in kinds:
            raise BadRequest(f"column {name} is {found}; send {kinds[0]}")
    table = stream.read_all()
    if table.num_rows > max_images:
        raise _count(table.num_rows, max_images)
    return table


def _is_compressed(message: pa.ipc.Message) -> bool:
    """Whether a record batch has the field `compression` of Arrow's Message.fbs."""
    flat = message.metadata.to_pybytes()
    header = _flat_field(flat, struct.unpack_from("<I", flat)[0], 2)
    return _flat_field(flat, header + struct.unpack_from("<I", flat, header)[0], 3) != 0


def _flat_field(flat: bytes, table: int, index: int) -> int:
    """Where a field of a flatbuffers table lies; 0 where it is not given."""
    vtable = table - struct.unpack_from("<i", flat, table)[0]
    slot = 4 + 2 * index
    if slot >= struct.unpack_from("<H", flat, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", flat, vtable + slot)[0]
    return table + offset if offset else 0


def _read_json(body: bytes, max_images: int) -> tuple[list[str], list[bytes]]:
    _check_structure(body, max_images)
    try:
        items = json.loads(body.decode())["items"]
        prompts = [item["prompt"] for item in items]
        images = [base64.b64decode(item["image"], validate=True) for item in items]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise BadRequest('not JSON of the form {"items": [{"prompt": text, "image": base64}, …]}') from error
    if not all(isinstance(prompt, str) and is_unicode(prompt) for prompt in prompts):
        raise BadRequest("prompts are texts")
    return prompts, images


def _check_structure(body: bytes, max_images: int) -> None:
    """Refuse JSON, in UTF-8, that would be read into more objects than `max_images` items have: each takes 50 bytes."""
    outside, strings = len(body), 0
    for strings, found in enumerate(JSON_STRING.finditer(body), 1):
        outside -= len(found[0])
        if strings > STRINGS * (max_images + 1):
            raise _count("too many", max_images)
    if outside > STRUCTURE_BYTES * (max_images + 1):
        raise BadRequest(f"{outside} bytes of JSON are outside of strings; send less structure", 413)


def write_request(prompts: Sequence[str], images: Sequence[bytes]) -> bytes:
    """A request as an Arrow stream."""
    return _stream(pa.table({"prompt": pa.array(prompts, pa.string()), "image": pa.array(images, pa.binary())}))


def write_answer(answer: Answer, content_type: str) -> tuple[bytes, str]:
    """The answer in the request's format, and its content type."""
    if media_type(content_type) == ARROW:
        columns = {name: pa.array(score_N, pa.float64(), from_pandas=True) for name, score_N in answer.scores.items()}
        count = len(next(iter(answer.scores.values())))
        errors = pa.array([answer.errors.get(i) for i in range(count)], pa.string())
        return _stream(pa.table({**columns, "error": errors})), ARROW
    scores = {
        name: [None if np.isnan(value) else value for value in score_N.tolist()]
        for name, score_N in answer.scores.items()
    }
    errors_of_images = [{"index": index, "reason": reason} for index, reason in sorted(answer.errors.items())]
    return json.dumps({"scores": scores, "errors": errors_of_images}).encode(), JSON


def read_answer(body: bytes) -> Answer:
    """An answer from an Arrow stream."""
    table = pa.ipc.open_stream(body).read_all()
    scores = {
        name: table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        for name in table.column_names
        if name != "error"
    }
    return Answer(scores, {i: reason for i, reason in enumerate(table["error"].to_pylist()) if reason is not None})


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
