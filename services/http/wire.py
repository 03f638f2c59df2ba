"""The two formats of `POST /v1/score`: JSON with base64 images, and an Arrow IPC stream. Neither uses pickle.

A request is a table of `prompt` (text) and `image` (a PNG, JPEG, WebP or PPM). It may have two more columns: `row`, the
other columns of the prompt's row (an object in JSON, its text in Arrow), and `group` (text), which images of one group
share. An answer is a table with one column per scorer (float64, null if there is no score), one per sub-score, named
SCORER.SUB, and a column `error` (text, null if the image could be scored).
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
from flatbuffers import encode, packer
from flatbuffers.table import Table

from services.base.errors import first_line

ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"
QUOTATION_MARKS = 32
"""The most quotation marks that an item in JSON may have, without those inside its strings and its row. A plain item
has 8."""
HEADER_OF_MESSAGE, COMPRESSION_OF_BATCH = 8, 10
"""The offsets of two fields in Arrow's Message.fbs: `header` of `Message`, and `compression` of `RecordBatch`."""
TEXT, BINARY = (pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())
MORE = ("row", "group")
"""The columns that an Arrow stream may leave out."""


NO_ROW = msgspec.Raw(b"{}")
"""The row of an item that names none."""


class Item(msgspec.Struct):
    """One image and its prompt."""

    prompt: str
    image: bytes
    """The encoded image, which is base64 in JSON."""
    row: msgspec.Raw = NO_ROW
    """The other columns of the prompt's row, as JSON. `services.scoring.row.read_row` reads it."""
    group: str | None = None
    """The name of the image's group in this request."""


class Items(msgspec.Struct):
    """A request in JSON."""

    items: list[Item]


class BadRequest(Exception):
    """A request that cannot be read, with the HTTP status of the answer. The message says why."""

    def __init__(self, why: str, status: int = 400) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class Answer:
    """Scores (N,) by scorer, with NaN for images without a score, and the reason for each bad image by its index."""

    scores: dict[str, np.ndarray]
    """Also those of the sub-scores, as SCORER.SUB."""
    errors: dict[int, str]


def read_request(body: bytes, content_type: str, max_images: int, max_row_bytes: int) -> list[Item]:
    """The items of a request. Reading takes little more memory than the body, whatever is in it.

    Args:
        max_row_bytes: the most bytes in the row of one item. A longer row is not refused here.

    Raises:
        BadRequest: the body has neither format or not these columns, is empty, or has more than `max_images` images.
    """
    kind = media_type(content_type)
    if kind not in (ARROW, JSON):
        raise BadRequest(f"content type `{kind}` is not supported; send {JSON} or {ARROW}", 415)
    items = _read_arrow(body, max_images) if kind == ARROW else _read_json(body, max_images, max_row_bytes)
    if not items:
        raise BadRequest("the request has no images; send at least one")
    if len(items) > max_images:
        raise _too_many(len(items), max_images)
    return items


def media_type(content_type: str) -> str:
    """The media type that a header names, without its parameters."""
    return content_type.split(";")[0].strip().lower()


def _too_many(images: int | str, max_images: int) -> BadRequest:
    return BadRequest(f"{images} images; a request may have at most {max_images}", 413)


def _read_arrow(body: bytes, max_images: int) -> list[Item]:
    try:
        table = _arrow_table(body, max_images)
        table.validate(full=True)
        prompts, images = (table[name].to_pylist() for name in ("prompt", "image"))
        rows, groups = (
            table[name].to_pylist() if name in table.column_names else [None] * len(prompts) for name in MORE
        )
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise BadRequest(f"not an Arrow stream with columns prompt and image: {first_line(error)}") from error
    if None in prompts or None in images:
        raise BadRequest("columns prompt and image must not contain nulls")
    return [
        Item(prompt, image, NO_ROW if row is None else msgspec.Raw(row.encode()), group)
        for prompt, image, row, group in zip(prompts, images, rows, groups, strict=True)
    ]


def _arrow_table(body: bytes, max_images: int) -> pa.Table:
    """Read the table. Its types and number of rows are checked before any column is read.

    Encodings that expand a few bytes to many (compression, runs, dictionaries, views, nulls) are refused.
    """
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(body)):
        if number > max_images:
            raise _too_many("too many", max_images)
        if message.type == "dictionary":
            raise BadRequest("a column is a dictionary; send plain text and binary")
        if message.type == "record batch" and _is_compressed(message):
            raise BadRequest(
                "the Arrow stream is compressed; send it uncompressed, since the images are compressed already"
            )
    stream = pa.ipc.open_stream(body)
    for name in ("prompt", "image", *(name for name in MORE if name in stream.schema.names)):
        kinds = BINARY if name == "image" else TEXT
        if (found := stream.schema.field(name).type) not in kinds:
            raise BadRequest(f"column {name} has type {found}; send {kinds[0]}")
    table = stream.read_all()
    if table.num_rows > max_images:
        raise _too_many(table.num_rows, max_images)
    return table


def _is_compressed(message: pa.ipc.Message) -> bool:
    """Whether the buffers of a record batch are compressed.

    PyArrow has no way to ask, and it decompresses them when it reads: a kilobyte may become a gigabyte. Therefore this
    function reads the message's metadata itself.
    """
    flat = message.metadata.to_pybytes()
    try:
        root = Table(flat, encode.Get(packer.uoffset, flat, 0))
        batch = Table(flat, root.Indirect(root.Pos + root.Offset(HEADER_OF_MESSAGE)))
        return batch.Offset(COMPRESSION_OF_BATCH) != 0
    except (struct.error, TypeError) as error:  # offsets outside of the buffer, and negative ones
        raise ValueError("the metadata of a record batch is broken") from error


def _read_json(body: bytes, max_images: int, max_row_bytes: int) -> list[Item]:
    """Decode JSON into items only. Rows stay text, and other values are parsed and dropped without making objects.

    The decoder does not limit the number of items, and each takes 200 bytes of memory. Therefore the quotation marks
    that do not follow a backslash are counted first: each string has at least one of them, and at most two. Rows may
    consist of such marks.
    """
    most = QUOTATION_MARKS * (max_images + 1) + max_row_bytes * max_images
    if body.count(b'"') - body.count(b'\\"') > most:
        raise _too_many("too many", max_images)
    try:
        items = msgspec.json.decode(body, type=Items).items
    except (ValueError, RecursionError) as error:
        form = '{"items": [{"prompt": text, "image": base64}, …]}'
        raise BadRequest(f"not JSON of the form {form}: {first_line(error)}") from error
    return items


def write_request(
    prompts: Sequence[str], images: Sequence[bytes], rows: Sequence[bytes] = (), groups: Sequence[str] = ()
) -> bytes:
    """Encode a request as an Arrow stream.

    Args:
        rows: one for each prompt, as JSON, or none.
        groups: one for each image, or none.
    """
    columns = {"prompt": pa.array(prompts, pa.string()), "image": pa.array(images, pa.binary())}
    if rows:
        columns["row"] = pa.array([row.decode() for row in rows], pa.string())
    if groups:
        columns["group"] = pa.array(groups, pa.string())
    return _stream(pa.table(columns))


def write_answer(answer: Answer, content_type: str) -> tuple[bytes, str]:
    """Encode an answer in the format of the request. Also returns its content type."""
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
    """Decode an answer from an Arrow stream."""
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
