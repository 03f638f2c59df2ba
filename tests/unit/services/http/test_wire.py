"""The pool's two formats, without Serve."""

import base64
import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pyarrow as pa
import pytest

from services.http.images import encode_image
from services.http.wire import (
    ARROW,
    JSON,
    Answer,
    BadRequest,
    read_answer,
    read_request,
    write_answer,
    write_request,
)
from services.scoring.row import read_row

ROW = 4096
"""The most bytes of a row."""
RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def test_a_request_reads_the_same_from_both_formats():
    image = encode_image(RED)
    text = base64.b64encode(image).decode()
    items = [{"prompt": "é", "image": text}, {"prompt": "b", "image": text, "row": {"n": [2, "ü"]}, "group": "g"}]
    body = json.dumps({"items": items}, ensure_ascii=False).encode()
    for more, column in (({}, None), ({"rows": [b"{}", '{"n": [2, "ü"]}'.encode()], "groups": [None, "g"]}, "g")):
        read = read_request(write_request(["é", "b"], [image] * 2, **more), ARROW, 9, 99)
        assert [(item.prompt, item.image, item.group) for item in read] == [("é", image, None), ("b", image, column)]
        assert [read_row(bytes(item.row), 99) for item in read] == [{}, {"n": [2, "ü"]} if more else {}]
    assert _values(read_request(body, JSON, 9, 99)) == _values(read)


def _values(items):
    return [(item.prompt, item.image, read_row(bytes(item.row), 99), item.group) for item in items]


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


def arrow(compression: str | None = None, **columns) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
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
        (b'{"items": [{"prompt": "x", "image": "", "row": {"a": }}]}', JSON),
        (b'{"items": [{"prompt": "x", "image": "", "row": {"a": NaN}}]}', JSON),
        (b'{"items": [{"prompt": "x", "image": "", "group": 3}]}', JSON),
        (arrow(prompt=["x"], image=[b""], row=[1.5]), ARROW),
        (arrow(prompt=["x"], image=[b""], row=pa.array([{"a": 1}])), ARROW),
        (arrow(prompt=["x"], image=[b""], row=pa.array(["{}"]).dictionary_encode()), ARROW),
        (arrow(prompt=["x"], image=[b""], group=[3]), ARROW),
        (b"", ARROW),
        (b"\xff" * 64, ARROW),
        (arrow(prompt=["x"]), ARROW),
        (arrow(prompt=["x"], image=[3]), ARROW),
        (arrow(prompt=[None], image=[b"x"]), ARROW),
        (b'{"items": [{"prompt": "\\ud800", "image": ""}]}', JSON),
        (b'{"items": [{"prompt": "\xff", "image": ""}]}', JSON),
        (b'{"items": ' + b"1" * 9999 + b"}", JSON),
        (b"x", "application/octet-stream"),
        (b"x", ""),
    ],
)
def test_a_body_that_is_no_request_is_refused(body, kind):
    with pytest.raises(BadRequest):
        read_request(body, kind, 9, ROW)


def runs(value: str | bytes) -> pa.Array:
    """A column of 2^30 rows in a few bytes."""
    return pa.RunEndEncodedArray.from_arrays(pa.array([2**30], pa.int32()), pa.array([value]))


HIDDEN = '{"\u2200":[' + "[]," * 10**7 + '[]],"items":[]}'
"""In UTF-16 the name has a byte that looks like a quotation mark, so that what follows looks like a text."""


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (arrow(prompt=runs("x"), image=runs(b"x")), ARROW, 400),
        (arrow(prompt=pa.nulls(2**30), image=pa.nulls(2**30)), ARROW, 400),
        (arrow(prompt=["x"], image=[bytes(10**8)], compression="zstd"), ARROW, 400),
        (arrow(prompt=pa.array(["x"]).dictionary_encode(), image=[b"x"]), ARROW, 400),
        (arrow(prompt=pa.array(["x"], pa.string_view()), image=[b"x"]), ARROW, 400),
        (arrow(prompt=["x"], image=pa.array([b""], pa.binary(0))), ARROW, 400),
        (arrow("zstd", prompt=["x"], image=[b""], more=pa.array(["x" * 10**8]).dictionary_encode()), ARROW, 400),
        (HIDDEN.encode("utf-16"), JSON, 400),
        (arrow(prompt=["x"] * 10, image=[b""] * 10), ARROW, 413),
        (b'{"items":[' + b"[]," * 10**7 + b"[]]}", JSON, 400),
        (b'{"items":[{"prompt":"x","image":"","also":[' + b"{}," * 10**7 + b"0]}]", JSON, 400),
        (b'{"also":' + b"[" * 10**7, JSON, 400),
        (b'{"items":[' + b'{"prompt":"","image":""},' * 10**6 + b"0]}", JSON, 413),
        (b'{"items":[' + b'{"prompt":"\\\\","image":"AAAA"},' * 10**6 + b"0]}", JSON, 413),
        (b'{"items":["' + b"\\" * 10**7, JSON, 400),
        (b'{"items":[{"prompt":"","image":"","row":' + b"[" * 10**7, JSON, 400),
        (b'{"items":[' + b'{"prompt":"","image":"","row":{"":""}},' * 10**6 + b"0]}", JSON, 413),
        (b'{"items":["' + b'\\"' * 10**7, JSON, 400),
    ],
    ids=[
        *("runs", "nulls", "compressed", "dictionary", "view", "width0", "more", "utf16", "rows", "lists", "also"),
        *("deep", "items", "hidden", "backslashes", "deep row", "items with rows", "quotes"),
    ],
)
def test_a_body_that_would_grow_is_refused_before_it_does(body, kind, status):
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    pa_before = pa.total_allocated_bytes()
    with pytest.raises(BadRequest) as refused:
        read_request(body, kind, 9, ROW)
    assert refused.value.status == status
    assert time.perf_counter() - started < 5
    assert psutil.Process().memory_info().rss - before < 100e6
    assert pa.total_allocated_bytes() == pa_before


@pytest.mark.parametrize(
    ("body", "kind"), [(b'{"items": []}', JSON), (write_request([], []), ARROW)], ids=["json", "arrow"]
)
def test_a_request_without_images_is_refused_as_one(body, kind):
    with pytest.raises(BadRequest, match="no images") as refused:
        read_request(body, kind, 9, ROW)
    assert refused.value.status == 400


def test_more_than_enough_structure_is_read():
    item = {"prompt": 'a "quoted" \\ text', "image": "", "also": [1, 2, {"a": "b"}]}
    body = json.dumps({"items": [item] * 9}, indent=8).encode()
    assert [(item.prompt, item.image) for item in read_request(body, JSON, 9, ROW)] == [(item["prompt"], b"")] * 9


def test_a_refusal_says_where_json_is_wrong():
    with pytest.raises(BadRequest, match=r"Invalid base64 encoded string - at `\$\.items\[1\]\.image`"):
        read_request(b'{"items": [{"prompt": "x", "image": ""}, {"prompt": "x", "image": "%"}]}', JSON, 9, ROW)


def test_prompts_may_be_full_of_quotation_marks():
    items = [{"prompt": '"' * 4096, "image": ""}, {"prompt": '\\"' * 2048, "image": ""}]
    read = read_request(json.dumps({"items": items}).encode(), JSON, 2, ROW)
    assert [item.prompt for item in read] == [item["prompt"] for item in items]


def test_broken_arrow_is_refused_and_nothing_else():
    """In a process of its own: Arrow is C++, and a mistake in it would take the gateway along."""
    done = subprocess.run([sys.executable, "-c", MUTATE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    good, refused = map(int, done.stdout.split())
    assert good > 100
    assert refused > 10_000


MUTATE = """
import random
from services.http.wire import ARROW, BadRequest, read_request, write_request
rng, good, refused = random.Random(0), 0, 0
whole = write_request(["hello", "wörld"], [b"an image", b"another"], [b"{}", b'{"a": 1}'], ["g", "g"])
for _ in range(20_000):
    body = bytearray(whole)
    if rng.random() < 0.2:
        del body[rng.randrange(len(body)) :]
    for _ in range(rng.randint(1, 5) if body else 0):
        body[rng.randrange(len(body))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    try:
        read_request(bytes(body), ARROW, 9, 99)
        good += 1
    except BadRequest:
        refused += 1
print(good, refused)
"""
