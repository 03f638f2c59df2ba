"""What a run writes to its folder, in which order, and what a kill or a loss of power leaves."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from system.run.files import tables
from system.run.folder import MAX_PICTURES, NEWEST_PICTURES
from system.run.opening import open_run
from tests.helpers.begun_runs import begin, config


def test_the_recipe_of_a_run_is_read_as_it_was_written(tmp_path):
    options = {"a": "1e3", "b": "010", "c": "yes", "d": 1e-7, "e": "1:30", "f": "x\u2028y"}
    settings = config(tmp_path, scorers=[{"name": "size", "scorer": "jpeg_size", "options": options}])
    with open_run(settings, resume=False) as run:
        assert run.read_config() == settings


def test_a_line_that_was_cut_off_is_no_line(tmp_path):
    run = begin(config(tmp_path), recorded=2)
    text = run.metrics_file.read_text()
    run.metrics_file.write_text(text + '{"step": 3, "los')
    assert [line["step"] for line in run.read_metrics()] == [0, 1, 2]
    run.forget_after(1)
    run.append_metrics({"step": 2})
    assert run.metrics_file.read_text() == text


def test_a_step_that_is_recorded_is_on_the_disk_with_what_belongs_to_it(tmp_path, monkeypatch):
    """Tables and pictures first, then their line; the file, its move and its folder."""
    synced: list[str] = []
    fsync, replace = os.fsync, os.replace

    def name(path) -> str:
        return Path(path).resolve().relative_to(tmp_path.resolve() / "mine").as_posix()

    def recorded_fsync(descriptor):
        synced.append(f"fsync {name(f'/proc/self/fd/{descriptor}')}")
        fsync(descriptor)

    def recorded_replace(source, target):
        synced.append(f"replace {name(target)}")
        replace(source, target)

    with open_run(config(tmp_path), resume=False) as run:
        run.append_metrics({"step": 0})
        for folder in ("experience", "eval", "samples/step_000001"):
            (run.path / folder).mkdir(parents=True)
        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "replace", recorded_replace)
        run.write_eval(1, pa.table({"row": [0]}))
        run.write_samples(1, np.zeros((1, 2, 2, 3), np.uint8), ["a cat"])
        run.write_experience(1, pa.table({"row": [0]}))
        run.append_metrics({"step": 1})
    tables_and_pictures = (
        ("eval", "step_000001.parquet"),
        ("samples/step_000001", "000.png"),
        ("experience", "step_000001.parquet"),
    )
    assert synced == [
        *(
            call
            for folder, file in tables_and_pictures
            for call in (f"fsync {folder}/.{file}.tmp", f"replace {folder}/{file}", f"fsync {folder}")
        ),
        "fsync metrics.jsonl",
    ]


def test_steps_whose_lines_are_torn_are_named_and_files_of_others_left_alone(tmp_path, caplog):
    run = begin(config(tmp_path), recorded=6)
    lines = run.metrics_file.read_bytes().split(b"\n")
    lines[1], lines[3] = b"\0" * 20, lines[3][:5]
    run.metrics_file.write_bytes(b"\n".join(lines))
    notes = run.path / "eval" / "step_mine.parquet"
    notes.parent.mkdir()
    notes.write_bytes(b"")
    run.forget_after(4)
    assert "has no intact line for step 1, 3\n" in caplog.text
    assert [line["step"] for line in run.read_metrics()] == [0, 2, 4]
    assert run.metrics_file.read_bytes() == b"\n".join([*lines[:5], b""])
    assert notes.exists()
    assert len(list((run.path / "experience").iterdir())) == 5
    run.metrics_file.write_bytes(b"\n".join(lines[:3]))
    run.forget_after(4)
    assert "has no intact line for step 1, 3–4\n" in caplog.text


def test_records_that_are_torn_altogether_are_named_at_the_restore(tmp_path, caplog):
    run = begin(config(tmp_path, steps=9), recorded=2, sealed=(0, 2))
    run.metrics_file.write_bytes(bytes(run.metrics_file.stat().st_size))
    run.forget_after(2)
    assert "has no intact line for step 0–2" in caplog.text


def test_the_steps_with_pictures_are_bounded_and_spread(tmp_path):
    with open_run(config(tmp_path), resume=False) as run:
        for step in range(1, 301):
            run.write_pictures(step, pa.table({"leaf": [step]}))
    kept = list(tables(run.path / "pictures"))
    assert len(kept) == MAX_PICTURES
    assert kept[0] == 1
    assert kept[-NEWEST_PICTURES:] == list(range(281, 301))
    assert np.diff(kept).max() <= 8
