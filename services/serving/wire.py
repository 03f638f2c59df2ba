"""The two formats of `POST /v1/score`: JSON with base64 images, and an Arrow IPC stream. No pickle in either.

A request is a table of `prompt` (text) and `image` (an encoded PNG, JPEG or WebP). An answer is a table with a column
a scorer (float64, null where there is no score) and `error` (text, null where the image was fine).
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"


class BadRequest(Exception):
    """A request that cannot be read; says why."""


@dataclass
class Answer:
    """Scores (N,) by scorer with NaN for none, and the reasons of bad images by index."""

    scores: dict[str, np.ndarray]
    errors: dict[int, str]


def read_request(body: bytes, content_type: str) -> tuple[list[str], list[bytes]]:
    """Prompts and encoded images of a request.

    Raises:
        BadRequest: neither format, or not this table.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind == ARROW:
        return _read_arrow(body)
    if kind == JSON:
        return _read_json(body)
    raise BadRequest(f"content type `{kind}`; send {JSON} or {ARROW}")


def _read_arrow(body: bytes) -> tuple[list[str], list[bytes]]:
    try:
        table = pa.ipc.open_stream(body).read_all()
        table.validate(full=True)
        prompts, images = (table[name].to_pylist() for name in ("prompt", "image"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, OSError) as error:
        raise BadRequest(f"not an Arrow stream with columns prompt and image: {error}") from error
    if not all(isinstance(p, str) for p in prompts) or not all(isinstance(i, bytes) for i in images):
        raise BadRequest("column prompt holds text and column image binary, without nulls")
    return prompts, images


def _read_json(body: bytes) -> tuple[list[str], list[bytes]]:
    try:
        items = json.loads(body)["items"]
        prompts = [item["prompt"] for item in items]
        images = [base64.b64decode(item["image"], validate=True) for item in items]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise BadRequest('not JSON of the form {"items": [{"prompt": text, "image": base64}, …]}') from error
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise BadRequest("prompts are texts")
    return prompts, images


def write_request(prompts: Sequence[str], images: Sequence[bytes]) -> bytes:
    """A request as an Arrow stream."""
    return _stream(pa.table({"prompt": pa.array(prompts, pa.string()), "image": pa.array(images, pa.binary())}))


def write_answer(answer: Answer, content_type: str) -> tuple[bytes, str]:
    """The answer in the request's format, and its content type."""
    if content_type.startswith(ARROW):
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
