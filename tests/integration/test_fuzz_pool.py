"""The reward pool against hostile callers: what its OpenAPI allows, broken images, bodies that would grow.

Whatever comes, the answer is a status that the API documents, below 500, within seconds; the replicas do not grow, and
the pool answers right afterwards.
"""

import random
import struct
import time
import zlib
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_schema_conformance,
    status_code_conformance,
)

from services.http.client import ScoreClient
from services.http.images import encode_image
from services.http.wire import ARROW, JSON, write_request
from tests.helpers.http_pool import TOKEN, as_json, grey, post, serving
from tests.helpers.images import chunk, encoded
from tests.helpers.processes import titled

ANSWER_TIMEOUT_S = 30
GROWTH_BYTES = 60e6
"""What a replica may take on after it has seen one round; a leak of 100 kB a request is more."""
POSTS = 24
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    ignored_auth,
]

quick_and_long = pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)], ids=["quick", "long"])


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "token").write_text(TOKEN)
    scorers = [{"name": "size", "scorer": "jpeg_size", "num_cpus": 0.1}]
    with serving(folder, scorers, token_file=str(folder / "token"), max_request_pixels=2**20) as url:
        yield url


@pytest.fixture
def steady(pool):
    with holding(pool):
        yield


@contextmanager
def holding(pool, growth_bytes=GROWTH_BYTES):
    """Afterwards the pool scores as before, and its replicas are as large as before."""
    image, before = grey(51, 16), replica_bytes()
    expected = ScoreClient(pool, TOKEN).score([image], ["x"]).scores["size"]
    yield
    started = time.monotonic()
    np.testing.assert_array_equal(ScoreClient(pool, TOKEN, attempts=1).score([image], ["x"]).scores["size"], expected)
    assert time.monotonic() - started < 5
    after = replica_bytes()
    assert after.keys() == before.keys(), "a replica died"
    grown = {before[pid][0]: (size - before[pid][1]) / 1e6 for pid, (_, size) in after.items()}
    print("MB", {name: f"{size / 1e6:.0f} → {after[pid][1] / 1e6:.0f}" for pid, (name, size) in before.items()})
    assert max(grown.values()) < growth_bytes / 1e6, grown


def replica_bytes() -> dict[int, tuple[str, int]]:
    """Name and resident bytes of the pool's replicas and proxy, by process."""
    found = {
        process.pid: (name.split()[0], process.memory_info().rss)
        for process, name in titled()
        if name.startswith(("ray::ServeReplica", "ray::ProxyActor"))
    }
    assert len(found) == 3, found
    return found


@schemathesis.serializer(ARROW)
def _as_it_is(context, value):
    return value if isinstance(value, bytes) else str(value).encode()


@quick_and_long
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_requests_made_from_its_own_description(pool, steady, rounds, mode):
    schema = schemathesis.openapi.from_url(f"{pool}/openapi.json")
    asked: dict[str, int] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.path != "/v1/score":
            continue  # a GET without parameters cannot be wrong

        @settings(
            max_examples=25 * rounds,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=ANSWER_TIMEOUT_S)
            asked[case.path] = asked.get(case.path, 0) + 1
            case.validate_response(answer, checks=CHECKS)

        ask()
    print("requests", asked)
    assert asked["/v1/score"] >= 20 * rounds


def png(width: int, height: int, depth: int = 8, kind: int = 2, pixels: bytes = b"\0" * 99, more: bytes = b"") -> bytes:
    """A PNG that promises what it likes, with `more` chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), more, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
WHOLE = {
    "png": encoded(NOISE),
    "jpeg": encoded(NOISE, "JPEG"),
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    "webp": encoded(NOISE, "WEBP"),
    "palette": encoded(NOISE.convert("P")),
    "alpha": encoded(NOISE.convert("RGBA")),
    "grey16": encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16))),
    "cmyk": encoded(NOISE.convert("CMYK"), "JPEG"),
    "animated": encoded(NOISE, "PNG", save_all=True, append_images=[NOISE.rotate(90)]),
    "animated webp": encoded(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(90)]),
    "1x1": encode_image(grey(0, 1)),
}
LAST_SCAN = WHOLE["progressive"][WHOLE["progressive"].rindex(b"\xff\xda") : -2]
BROKEN = {
    "nothing": b"",
    "gif": encoded(NOISE.convert("P"), "GIF"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "magic only": b"\x89PNG\r\n\x1a\n",
    "bomb": png(40_000, 25_000),
    "widest": png(2**31 - 1, 2**31 - 1),
    "no width": png(0, 8),
    "few pixels": png(100, 100),
    "strip": png(30_000, 1, pixels=bytes(90_001)),
    "odd depth": png(8, 8, depth=3),
    "odd colours": png(8, 8, kind=5),
    "300 transparent colours": png(8, 8, kind=3, more=chunk(b"tRNS", b"\xff" * 300)),
    "half a profile": png(8, 8, more=chunk(b"iCCP", b"name")),
    "1000 profiles": png(8, 8, more=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**6))) * 1000),
    "3000 scans": WHOLE["progressive"][:-2] + LAST_SCAN * 3000 + b"\xff\xd9",
} | {f"half a {name}": data[: len(data) // 2] for name, data in WHOLE.items() if name != "animated webp"}


def test_whole_images_are_scored_and_broken_ones_fail_alone(pool, steady):
    images = [*WHOLE.values(), *BROKEN.values()]
    answer = post(pool, as_json(*[("x", data) for data in images]))
    assert answer.status_code == 200, answer.text
    scores, failed = answer.json()["scores"]["size"], {error["index"] for error in answer.json()["errors"]}
    names = [*WHOLE, *BROKEN]
    assert {names[i] for i in failed} == set(BROKEN)
    assert {names[i] for i, score in enumerate(scores) if score is None} == set(BROKEN)
    in_arrow = post(pool, write_request(["x"] * len(images), images), kind=ARROW)
    assert pa.ipc.open_stream(in_arrow.content).read_all()["size"].to_pylist() == scores


@quick_and_long
def test_mutated_images(pool, steady, rounds):
    rng, kinds = random.Random(0), list(WHOLE.values())
    seen = set()
    for _ in range(20 * rounds):
        images = []
        for _ in range(50):
            data = bytearray(rng.choice(kinds))
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(min(len(data), rng.choice((64, 10**6))))] = rng.randrange(256)
            images.append(bytes(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data))
        answer = post(pool, write_request(["x"] * 50, images), kind=ARROW)
        seen.add(answer.status_code)
    assert seen <= {200, 413}, "413: a header that promises too many pixels"
    assert 200 in seen


def stream(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


GOOD = write_request(["x"], [WHOLE["png"]])
DEEP = b"[" * 100_000
BODIES = {
    "arrow, nothing": (ARROW, b"", {400}),
    "arrow, cut": (ARROW, GOOD[: len(GOOD) // 2], {400}),
    "arrow, another table": (ARROW, stream(pa.table({"a": [1]})), {400}),
    "arrow, nested": (ARROW, stream(pa.table({"prompt": [["x"]], "image": [{"a": b"x"}]})), {400}),
    "arrow, null rows": (ARROW, stream(pa.table({"prompt": pa.nulls(2**30), "image": pa.nulls(2**30)})), {400}),
    "arrow, compressed": (
        ARROW,
        stream(pa.table({"prompt": ["x"], "image": pa.array([bytes(10**9)], pa.large_binary())}), compression="zstd"),
        {400},
    ),
    "arrow, 1e5 rows": (ARROW, write_request(["x"] * 100_000, [b""] * 100_000), {413}),
    "json, 1e5 items": (JSON, as_json(*[("x", b"")] * 100_000), {413}),
    "json, deep": (JSON, DEEP, {400}),
    "json, lists": (JSON, b'{"items":[' + b"[]," * 10**7 + b"[]]}", {400}),
    "json, an open text": (JSON, b'{"items":["' + b'\\"' * 10**6, {400}),
    "json, not UTF-8": (JSON, b'{"items":[{"prompt":"\xff","image":""}]}', {400}),
    "json, half a pair": (JSON, b'{"items":[{"prompt":"\\ud800","image":""}]}', {400}),
    "json, not base64": (JSON, b'{"items":[{"prompt":"x","image":"%%%"}]}', {400}),
    "json, other kinds": (JSON, b'{"items":[{"prompt":3,"image":[]}, null]}', {400}),
    "json, null": (JSON, b"null", {400}),
    "too large": (JSON, b" " * (2**26 + 1), {413}),
    "many pixels together": (ARROW, write_request(["x"] * 5, [encode_image(grey(0, 512))] * 5), {413}),
    "long prompt": (JSON, as_json(("x" * 10**6, WHOLE["png"])), {200}),
    "zip": ("application/zip", b"PK", {415}),
    "no type": ("", b"{}", {415}),
}


def ask_hostile(pool: str, name: str) -> None:
    """Send one of BODIES; the answer is the expected one, and in time."""
    kind, body, expected = BODIES[name]
    started = time.monotonic()
    answer = post(pool, body, kind=kind)
    assert answer.status_code in expected, answer.text
    assert time.monotonic() - started < 10
    assert answer.status_code == 200 or isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_or_would_grow_is_answered(pool, name):
    ask_hostile(pool, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_many_hostile_bodies_leave_no_memory_behind(pool, name):
    """The allocator keeps pages of the first few bodies, and of some later ones; of bodies that leak all would stay."""
    for _ in range(4):
        ask_hostile(pool, name)
    with holding(pool, max(GROWTH_BYTES, POSTS / 2 * len(BODIES[name][1]))):
        for _ in range(POSTS):
            ask_hostile(pool, name)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Basic eDp5"}, 401),
        ({"Authorization": b"Bearer \xff\xfe"}, 401),
        ({"X-Tempflow-Run": "x" * 65}, 422),
        ({"X-Tempflow-Run": b"\xff"}, 422),
        ({"Content-Type": "application/json; charset=nonsense"}, 200),
        ({"Content-Type": b"\xff\xfe"}, 415),
        ({"Content-Encoding": "gzip"}, 200),
    ],
)
def test_odd_headers(pool, steady, headers, expected):
    usual = {"Authorization": f"Bearer {TOKEN}", "Content-Type": JSON}
    body = as_json(("x", WHOLE["png"]))
    answer = requests.post(f"{pool}/v1/score", data=body, headers=usual | headers, timeout=ANSWER_TIMEOUT_S)
    assert answer.status_code == expected, answer.text


def test_a_scorer_named_a_thousand_times_is_asked_once_and_many_sizes_fit_its_queue(pool, steady):
    sizes = [encode_image(np.zeros((10 + i // 20, 10 + i % 20, 3), np.uint8)) for i in range(300)]
    answer = post(pool, write_request(["x"] * 300, sizes), kind=ARROW, query="?scorers=" + ",".join(["size"] * 1000))
    assert answer.status_code == 200, answer.text
    assert pa.ipc.open_stream(answer.content).read_all()["size"].null_count == 0


def test_the_answer_to_a_broken_image_says_nothing_of_the_process(pool):
    said = post(pool, as_json(*[("x", data) for data in BROKEN.values()])).json()["errors"]
    assert len(said) == len(BROKEN)
    assert not [error for error in said if " at 0x" in error["reason"] or "site-packages" in error["reason"]]
