"""TensorBoard's event files read back; W&B's offline files; what is refused before a run starts."""

import io
import json
import math
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from services.base.errors import UserError
from system.recipe.load import parse_config
from system.recipe.model import LogSettings, RunConfig, WandbSettings
from system.run.checkpoint import RunState
from system.run.folder import RunFolder
from system.run.loggers import WANDB_KEY, check_loggers, numbers, open_loggers, tiled
from system.run.opening import open_run
from tests.helpers.recipes import MINIMAL

IMAGES_NHWC = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
CAPTIONS = [f"prompt {i} · judge 0.{i}" for i in range(5)]
EXPERIENCE = pa.table({"prompt": ["a cat"], "reward": [0.5]})
KEY = "a key that nobody may read"


def config(tmp_path, **log) -> RunConfig:
    return parse_config(RunConfig, MINIMAL | {"name": "mine", "output": str(tmp_path), "steps": 9, "log": log}, "test")


def step(run: RunFolder, number: int, value: float) -> None:
    run.append_metrics({"step": number, "loss": value, "kl": math.nan, "grad_norm": None, "branch/std": [1.0, 2.0]})


def first_and_second_process(settings: RunConfig) -> RunFolder:
    """Steps 0 to 3, of which a checkpoint holds 0 and 1; then 2 to 4, with an evaluation of 1 that was missing."""
    with open_run(settings, resume=False) as run, open_loggers(settings, run.path) as run.loggers:
        checkpoints = run.checkpoints(settings.checkpoint)
        checkpoints.claim()
        checkpoints.commit(RunState(step=1), {}, run.recipe)
        run.write_samples(0, IMAGES_NHWC, CAPTIONS)
        run.write_experience(0, EXPERIENCE)
        for number in range(4):
            step(run, number, number / 2)
    with open_run(settings, resume=True) as run, open_loggers(settings, run.path) as run.loggers:
        run.forget_after(1)
        run.amend_metrics({"eval/size": 7.0})
        for number in range(2, 5):
            step(run, number, number / 2)
    return run


def test_tensorboard_has_each_point_once_after_a_resume_and_the_pictures(tmp_path):
    run = first_and_second_process(config(tmp_path, tensorboard=True))
    events = EventAccumulator(str(run.path / "tensorboard"), purge_orphaned_data=True).Reload()
    assert set(events.Tags()["scalars"]) == {"step", "loss", "branch/std/0", "branch/std/1", "eval/size"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(i, i / 2) for i in range(5)]
    assert [(e.step, e.value) for e in events.Scalars("eval/size")] == [(1, 7.0)]
    (picture,) = events.Images("samples")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture.encoded_image_string))), tiled(IMAGES_NHWC))
    (said,) = events.Tensors("samples/captions")
    assert said.tensor_proto.string_val[0].decode().splitlines() == [f"{i + 1}. {c}" for i, c in enumerate(CAPTIONS)]


def whole(file: Path) -> list[Any]:
    """W&B's records of a run, the last of which its own process writes a moment after the run is finished."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline, found = time.monotonic() + 60, []
    while not (found and found[-1].HasField("exit")):
        assert time.monotonic() < deadline, f"{file} has no end"
        found = [Record.FromString(data) for data in records(file)]
    return found


def records(file: Path) -> Iterator[bytes]:
    """The whole ones of W&B's file, which is LevelDB's log format: blocks of 32 KiB, records in parts of (crc, length,
    type).
    """
    data, at, record = file.read_bytes(), 7, b""
    while at < len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        if at + 7 > len(data):
            return
        _, length, part = struct.unpack_from("<IHB", data, at)
        if at + 7 + length > len(data):
            return
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):
            yield record
            record = b""


def test_wandb_offline_goes_on_with_its_run_sends_no_step_twice_and_keeps_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv(WANDB_KEY, KEY)
    run = first_and_second_process(config(tmp_path, wandb={"mode": "offline", "experience": True}))
    seen: Counter[tuple[int, str]] = Counter()
    ids = set()
    files = sorted(run.path.glob("wandb/offline-run-*/run-*.wandb"))
    for record in (record for file in files for record in whole(file)):
        if record.HasField("run"):
            ids.add(record.run.run_id)
        if record.HasField("history"):
            keys = ["/".join(item.nested_key) or item.key for item in record.history.item]
            seen.update((record.history.step.num, key) for key in keys)
    assert len(files) == 2
    assert ids == {(run.path / "wandb_id").read_text()}
    assert {number: count for (number, key), count in seen.items() if key == "loss"} == dict.fromkeys(range(5), 1)
    assert {number for number, key in seen if key.startswith("samples")} == {0}
    assert {number for number, key in seen if key.startswith("experience")} == {0}
    (captions,) = [
        json.loads(item.value_json)
        for record in (record for file in files for record in whole(file))
        for item in record.history.item
        if ("/".join(item.nested_key) or item.key) == "samples/captions"
    ]
    assert captions == CAPTIONS
    assert not [key for _, key in seen if key in ("kl", "grad_norm")]
    assert not [path for path in run.path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_package_or_a_key_that_is_missing_is_named_before_anything_starts(monkeypatch):
    monkeypatch.delenv(WANDB_KEY, raising=False)
    check_loggers(LogSettings(tensorboard=True, wandb=WandbSettings(mode="offline")))
    with pytest.raises(UserError, match=f"{WANDB_KEY}.*mode=offline"):
        check_loggers(LogSettings(wandb=WandbSettings()))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for settings in (LogSettings(tensorboard=True), LogSettings(wandb=WandbSettings(mode="offline"))):
        with pytest.raises(UserError, match=r"pip install 'tempflow\[(tensorboard|wandb)\]'"):
            check_loggers(settings)
    check_loggers(LogSettings())


def test_numbers_are_finite_and_lists_are_spread():
    line = {"a": 1, "b": math.inf, "c": None, "d": [0.5, math.nan], "e": "text", "f": np.float32(2)}
    assert numbers(line) == {"a": 1.0, "d/0": 0.5, "f": 2.0}


def test_pictures_are_tiled_in_order():
    grid = tiled(IMAGES_NHWC)
    assert grid.shape == (2 * 4, 3 * 6, 3)
    np.testing.assert_array_equal(grid[4:, 6:12], IMAGES_NHWC[4])
    assert not grid[4:, 12:].any()
