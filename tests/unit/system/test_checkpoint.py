"""Checkpoints: whole or not there, newest first, torn ones passed over; on a disk and on S3."""

import logging
import re

import pytest

from services.errors import UserError
from services.storage import Folder
from system.checkpoint import Checkpoints, RunState
from tests.s3 import bucket

__all__ = ["bucket"]


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path) -> Folder:
    if request.param == "disk":
        return Folder.at(str(tmp_path / "run"))
    return Folder.at(request.getfixturevalue("bucket")) / "run"


def save(checkpoints: Checkpoints, step: int, heldout: float | None = None) -> None:
    folder = checkpoints.begin(step)
    digests = {"trained.safetensors": folder.write("trained.safetensors", b"weights of %d" % step)}
    checkpoints.commit(RunState(step=step, nfe=step * 100, heldout=heldout), digests, "seed: 0")


def test_the_newest_is_found_and_old_ones_go(folder):
    checkpoints = Checkpoints(folder, keep=2)
    for step in (2, 4, 10):
        save(checkpoints, step)
    assert folder.names() == ["step_000004", "step_000010"]
    found, state = checkpoints.latest()
    assert state == RunState(step=10, nfe=1000)
    assert found.read("trained.safetensors") == b"weights of 10"


def test_the_best_is_kept_as_well(folder):
    checkpoints = Checkpoints(folder, keep=1)
    for step, heldout in ((2, 0.1), (4, 0.5), (6, 0.3), (8, None)):
        save(checkpoints, step, heldout)
    assert folder.names() == ["step_000004", "step_000008"]
    assert checkpoints.latest()[1].step == 8


@pytest.mark.parametrize(
    "damage", ["altered", "torn", "no manifest", "half a manifest", "not text", "zeros", "a list", "no recipe"]
)
def test_a_damaged_checkpoint_is_passed_over_and_the_log_says_so(tmp_path, caplog, damage):
    checkpoints = Checkpoints(Folder.at(str(tmp_path)), keep=3)
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
        _, state = checkpoints.latest()
    assert state.step == 2
    assert "step_000004 is not usable" in caplog.text


@pytest.mark.parametrize("content", ["", "{", '{"stride": 2}'])
def test_a_torn_older_checkpoint_does_not_stop_the_next_one(tmp_path, content):
    checkpoints = Checkpoints(Folder.at(str(tmp_path)), keep=2)
    for step in (2, 4):
        save(checkpoints, step)
    (tmp_path / "step_000002" / "state.json").write_text(content)
    save(checkpoints, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000004", "step_000006"]


def test_a_run_does_not_begin_again_where_every_checkpoint_is_damaged(folder):
    checkpoints = Checkpoints(folder, keep=3)
    checkpoints.begin(2).write("trained.safetensors", b"half")
    assert checkpoints.latest() is None
    for step in (4, 6):
        save(checkpoints, step)
        (folder / f"step_{step:06d}").write("trained.safetensors", b"altered")
    with pytest.raises(UserError, match="step_000006 the newest of 2"):
        checkpoints.latest()


def test_a_storage_that_does_not_answer_is_not_taken_for_a_damaged_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(Folder.at(str(tmp_path)), keep=3)
    save(checkpoints, 2)

    def sha256(self, name):
        raise TimeoutError("no answer")

    monkeypatch.setattr(Folder, "sha256", sha256)
    with pytest.raises(TimeoutError):
        checkpoints.latest()


def test_a_crash_while_writing_leaves_the_checkpoint_before_it(folder):
    checkpoints = Checkpoints(folder, keep=3)
    save(checkpoints, 2)
    checkpoints.begin(4).write("trained.safetensors", b"half")
    assert checkpoints.latest()[1].step == 2
    save(checkpoints, 4)
    assert checkpoints.latest()[1].step == 4
    assert folder.names() == ["step_000002", "step_000004"]


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
