"""Checkpoints: whole or not there, newest first, torn ones passed over; on a disk and on S3."""

import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from services.base.errors import UserError
from services.base.storage import Folder
from system.run.checkpoint import Checkpoints, RunState
from tests.helpers.s3 import bucket

__all__ = ["bucket"]


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path) -> Folder:
    if request.param == "disk":
        return Folder.at(str(tmp_path / "run"))
    return Folder.at(request.getfixturevalue("bucket")) / "run"


def opened(folder: Folder, keep: int) -> Checkpoints:
    """Those of a driver that has begun."""
    checkpoints = Checkpoints(folder, keep)
    checkpoints.claim()
    return checkpoints


def save(checkpoints: Checkpoints, step: int, heldout: float | None = None) -> None:
    folder = checkpoints.begin(step)
    digests = {"trained.safetensors": folder.write("trained.safetensors", b"weights of %d" % step)}
    checkpoints.commit(RunState(step=step, nfe=step * 100, heldout=heldout), digests, "seed: 0")


def steps(folder: Folder) -> list[int]:
    return [int(name.removeprefix("step_")) for name in folder.names() if re.fullmatch(r"step_\d+", name)]


def alter(folder: Folder, *of_steps: int) -> None:
    for step in of_steps:
        (folder / f"step_{step:06d}").write("trained.safetensors", b"altered")


def test_the_newest_is_found_and_old_ones_go(folder):
    checkpoints = opened(folder, keep=2)
    for step in (2, 4, 10):
        save(checkpoints, step)
    assert steps(folder) == [4, 10]
    found = checkpoints.latest()
    assert (found.state, found.recipe) == (RunState(step=10, nfe=1000), "seed: 0")
    assert found.folder.read("trained.safetensors") == b"weights of 10"


def test_a_step_of_seven_digits_is_newer_than_one_of_six(tmp_path):
    checkpoints = opened(Folder.at(str(tmp_path)), keep=1)
    for step in (999_999, 1_000_000):
        save(checkpoints, step)
    assert checkpoints.latest().state.step == 1_000_000


def test_the_best_is_kept_as_well(folder):
    checkpoints = opened(folder, keep=1)
    for step, heldout in ((2, 0.1), (4, 0.5), (6, 0.3), (8, None)):
        save(checkpoints, step, heldout)
    assert steps(folder) == [4, 8]
    assert checkpoints.latest().state.step == 8


def test_the_best_and_any_kept_one_are_found(folder):
    checkpoints = opened(folder, keep=4)
    assert (checkpoints.best(), checkpoints.at(2)) == (None, None)
    for step, heldout in ((2, None), (4, 0.7), (6, 0.9), (8, 0.9), (10, 0.8)):
        save(checkpoints, step, heldout)
    assert checkpoints.steps() == [4, 6, 8, 10]
    assert checkpoints.best().state.step == 6
    assert checkpoints.at(4).folder.read("trained.safetensors") == b"weights of 4"
    assert checkpoints.at(2) is None
    alter(folder, 6, 10)
    other = Checkpoints(folder, keep=4)
    assert (other.best().state.step, other.at(6), other.latest().state.step) == (8, None, 8)


def test_a_score_that_is_known_later_is_recorded_in_the_checkpoint(folder):
    checkpoints = opened(folder, keep=1)
    for step, heldout in ((2, 0.1), (4, None)):
        save(checkpoints, step, heldout)
    weights = checkpoints.at(4).folder.read("trained.safetensors")
    checkpoints.amend(replace(checkpoints.at(4).state, heldout=0.5))
    best = Checkpoints(folder, keep=1).best()
    assert (best.state.step, best.state.heldout, best.state.nfe) == (4, 0.5, 400)
    assert best.folder.read("trained.safetensors") == weights
    assert steps(folder) == [4]


def test_a_kill_while_a_score_is_recorded_leaves_the_checkpoint_as_it_was(folder, monkeypatch):
    checkpoints = opened(folder, keep=1)
    save(checkpoints, 2, None)
    before = checkpoints.latest().state

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "_seal", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.amend(replace(before, heldout=0.5))
    assert Checkpoints(folder, keep=1).latest().state == before


def test_damaged_checkpoints_do_not_crowd_out_whole_ones(folder):
    """With three that are torn beside it, the newest good one was deleted when two new ones had been saved."""
    first = opened(folder, keep=4)
    for step in (2, 4, 6, 8):
        save(first, step)
    alter(folder, 4, 6, 8)
    resumed = opened(folder, keep=3)
    assert resumed.latest().state.step == 2
    for step in (3, 5):
        save(resumed, step)
    assert steps(folder) == [2, 3, 5]


def test_what_the_program_did_not_write_is_left_alone(folder):
    checkpoints = opened(folder, keep=1)
    for name in ("step_000001.backup", "step_1", "my_step_000003", "notes"):
        (folder / name).write("file", b"mine")
    folder.write("step_000003", b"a file")
    for step in (2, 4):
        save(checkpoints, step)
    assert {"step_000001.backup", "step_1", "my_step_000003", "notes", "step_000003"} <= set(folder.names())
    assert checkpoints.latest().state.step == 4


def test_an_old_checkpoint_that_cannot_be_removed_does_not_undo_the_new_one(folder, monkeypatch, caplog):
    checkpoints = opened(folder, keep=1)
    save(checkpoints, 2)
    begin = checkpoints.begin(4)
    digests = {"trained.safetensors": begin.write("trained.safetensors", b"weights of 4")}

    def remove(self):
        raise PermissionError("not yours")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Folder, "remove", remove)
        checkpoints.commit(RunState(step=4), digests, "seed: 0")
    assert "could not be removed: not yours" in caplog.text
    assert checkpoints.latest().state.step == 4
    save(checkpoints, 6)
    assert steps(folder) == [6]


def test_an_older_checkpoint_is_read_once_and_not_at_each_commit(folder, monkeypatch):
    first = opened(folder, keep=3)
    for step in (2, 4):
        save(first, step)
    read: list[str] = []
    sha256 = Folder.sha256

    def counting(self, name):
        read.append(self.path.rpartition("/")[2])
        return sha256(self, name)

    monkeypatch.setattr(Folder, "sha256", counting)
    resumed = opened(folder, keep=3)
    for step in (6, 8):
        save(resumed, step)
    assert sorted(set(read)) == ["step_000002", "step_000004"]
    assert len(read) == 2 * 3


def test_a_driver_whose_run_was_taken_over_writes_nothing_more(folder):
    older, newer = opened(folder, keep=3), None
    save(older, 2)
    begun = older.begin(4)
    digests = {"trained.safetensors": begun.write("trained.safetensors", b"weights of 4")}
    newer = opened(folder, keep=3)
    with pytest.raises(UserError, match=f"another driver has taken over .*process {os.getpid()} on"):
        older.commit(RunState(step=4), digests, "seed: 0")
    assert newer.latest().state.step == 2
    save(newer, 4)
    with pytest.raises(UserError, match="another driver has taken over"):
        older.begin(4)
    assert newer.latest().state.step == 4


def test_a_folder_that_goes_away_under_a_driver_is_the_storages_failure(folder):
    checkpoints = opened(folder, keep=3)
    folder.remove()
    with pytest.raises(OSError, match="driver"):
        checkpoints.begin(2)


@pytest.mark.parametrize("keep", [1, 2])
def test_nothing_old_is_removed_before_the_new_one_is_on_the_disk(tmp_path, monkeypatch, keep):
    """Each file is synced, then moved, then its folder is synced; the manifest comes last, and the removal after it."""
    checkpoints = opened(Folder.at(str(tmp_path)), keep=keep)
    for step in (2, 4, 6)[:keep]:
        save(checkpoints, step)
    calls: list[tuple[str, str]] = []
    fsync, replace, remove = os.fsync, os.replace, Folder.remove

    def name(path) -> str:
        return Path(path).resolve().relative_to(tmp_path.resolve()).as_posix()

    def recorded_fsync(descriptor):
        calls.append(("fsync", name(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def recorded_replace(source, target):
        calls.append(("replace", name(target)))
        replace(source, target)

    def recorded_remove(self):
        calls.append(("remove", name(self.path)))
        remove(self)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    monkeypatch.setattr(Folder, "remove", recorded_remove)
    save(checkpoints, 8)
    files = ("trained.safetensors", "state.json", "recipe.yaml", "manifest.json")
    written = [
        call
        for file in files
        for call in (
            ("fsync", f"step_000008/.{file}.tmp"),
            ("replace", f"step_000008/{file}"),
            ("fsync", "step_000008"),
        )
    ]
    assert calls == [("remove", "step_000008"), ("fsync", "."), *written, ("remove", "step_000002")]


def test_a_checkpoint_under_another_name_is_not_taken(tmp_path):
    checkpoints = opened(Folder.at(str(tmp_path)), keep=3)
    for step in (2, 4):
        save(checkpoints, step)
    (tmp_path / "step_000004").rename(tmp_path / "step_000009")
    assert checkpoints.latest().state.step == 2


def test_the_recipe_is_that_of_the_newest_that_can_be_read(folder):
    checkpoints = opened(folder, keep=3)
    assert checkpoints.recipe() is None
    for step in (2, 4):
        save(checkpoints, step)
    (folder / "step_000004").write("recipe.yaml", b"seed: 7")
    assert checkpoints.recipe() == "seed: 0"
    (folder / "step_000002").write("recipe.yaml", b"seed: 7")
    with pytest.raises(UserError, match=r"the newest of 2 is step_000004 \(recipe.yaml does not match its checksum\)"):
        checkpoints.recipe()


@pytest.mark.parametrize(
    "damage", ["altered", "torn", "no manifest", "half a manifest", "not text", "zeros", "a list", "no recipe"]
)
def test_a_damaged_checkpoint_is_passed_over_and_the_log_says_so(tmp_path, caplog, damage):
    checkpoints = opened(Folder.at(str(tmp_path)), keep=3)
    for step in (2, 4):
        save(checkpoints, step)
    newest = tmp_path / "step_000004"
    manifest = newest / "manifest.json"
    match damage:
        case "not text":
            manifest.write_bytes(b"\xff" + manifest.read_bytes())
        case "zeros":
            manifest.write_bytes(bytes(manifest.stat().st_size))
        case "a list":
            manifest.write_text("[]")
        case "no recipe":
            manifest.write_text(re.sub(r'"recipe.yaml": "\w+",', "", manifest.read_text()))
        case "altered":
            (newest / "trained.safetensors").write_bytes(b"weights of 5")
        case "torn":
            (newest / "trained.safetensors").unlink()
        case "no manifest":
            manifest.unlink()
        case "half a manifest":
            manifest.write_text('{"sha256": {')
    with caplog.at_level(logging.WARNING):
        found = checkpoints.latest()
    assert found.state.step == 2
    assert "step_000004 cannot be used" in caplog.text


@pytest.mark.parametrize("content", ["", "{", '{"stride": 2}'])
def test_a_torn_older_checkpoint_does_not_stop_the_next_one(tmp_path, content):
    checkpoints = opened(Folder.at(str(tmp_path)), keep=3)
    for step in (2, 4):
        save(checkpoints, step)
    (tmp_path / "step_000002" / "state.json").write_text(content)
    save(opened(Folder.at(str(tmp_path)), keep=3), 6)
    assert steps(Folder.at(str(tmp_path))) == [4, 6]


def test_a_run_does_not_begin_again_where_every_checkpoint_is_damaged(folder):
    checkpoints = opened(folder, keep=3)
    checkpoints.begin(2).write("trained.safetensors", b"half")
    assert checkpoints.latest() is None
    for step in (4, 6):
        save(checkpoints, step)
        (folder / f"step_{step:06d}").write("trained.safetensors", b"altered")
    with pytest.raises(UserError, match="the newest of 2 is step_000006"):
        checkpoints.latest()


def test_a_storage_that_does_not_answer_is_not_taken_for_a_damaged_checkpoint(tmp_path, monkeypatch):
    checkpoints = opened(Folder.at(str(tmp_path)), keep=3)
    save(checkpoints, 2)

    def sha256(self, name):
        raise TimeoutError("no answer")

    monkeypatch.setattr(Folder, "sha256", sha256)
    with pytest.raises(TimeoutError):
        checkpoints.latest()


def test_a_crash_while_writing_leaves_the_checkpoint_before_it(folder):
    checkpoints = opened(folder, keep=3)
    save(checkpoints, 2)
    checkpoints.begin(4).write("trained.safetensors", b"half")
    assert checkpoints.latest().state.step == 2
    save(checkpoints, 4)
    assert checkpoints.latest().state.step == 4
    assert steps(folder) == [2, 4]


def test_a_full_disk_is_an_os_error_and_leaves_no_file(tmp_path):
    folder = Folder.at(str(tmp_path))
    (tmp_path / ".weights.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        folder.write("weights", b"x" * 2**20)
    assert "weights" not in folder.names()


def test_no_checkpoint_is_none_and_no_such_storage_is_the_users_mistake(folder):
    assert Checkpoints(folder, 1).latest() is None
    with pytest.raises(UserError, match="ftp://host/runs"):
        Folder.at("ftp://host/runs")


def test_what_is_verified_does_not_grow_with_what_is_there(tmp_path, monkeypatch):
    """After a resume the older checkpoints are unknown: the newest are read until there are enough, and the best."""
    folder = Folder.at(str(tmp_path))
    before, after = Checkpoints(folder, keep=9), Checkpoints(folder, keep=2)
    before.claim()
    for step, heldout in ((2, 0.9), (4, 0.1), (6, None), (8, 0.2)):
        save(before, step, heldout)
    after.claim()
    read = []
    sha256 = Folder.sha256
    monkeypatch.setattr(Folder, "sha256", lambda self, name: read.append(self.path[-6:]) or sha256(self, name))
    save(after, 10)
    assert set(read) == {"000008", "000002"}
    assert folder.folders() == ["step_000002", "step_000008", "step_000010"]


def test_a_folder_that_only_looks_like_ours_is_left_alone(tmp_path):
    checkpoints = Checkpoints(Folder.at(str(tmp_path)), keep=1)
    checkpoints.claim()
    for name in ("step_0000001", "step_000001.backup", "step_x"):
        (tmp_path / name).mkdir()
    for step in (2, 4):
        save(checkpoints, step)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "step_0000001", "step_000001.backup", "step_x", "step_000004"
    }  # fmt: skip
