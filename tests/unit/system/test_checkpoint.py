"""Checkpoints: whole or not there, newest first, torn ones passed over."""

import logging

import pytest

from system.checkpoint import RunState, latest_checkpoint, save_checkpoint


def write(folder: str) -> None:
    from pathlib import Path

    (Path(folder) / "trained.safetensors").write_bytes(b"weights")


def test_the_newest_is_found_and_old_ones_go(tmp_path):
    for step in (2, 4, 10):
        save_checkpoint(tmp_path, RunState(step=step, nfe=step * 100), write, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000004", "step_000010"]
    folder, state = latest_checkpoint(tmp_path)
    assert (folder.name, state) == ("step_000010", RunState(step=10, nfe=1000))


@pytest.mark.parametrize("damage", ["altered", "torn", "no manifest", "half a manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_the_log_says_so(tmp_path, caplog, damage):
    for step in (2, 4):
        save_checkpoint(tmp_path, RunState(step=step), write, keep=3)
    newest = tmp_path / "step_000004"
    match damage:
        case "altered":
            (newest / "trained.safetensors").write_bytes(b"weight5")
        case "torn":
            (newest / "trained.safetensors").unlink()
        case "no manifest":
            (newest / "manifest.json").unlink()
        case "half a manifest":
            (newest / "manifest.json").write_text('{"sha256": {')
    with caplog.at_level(logging.WARNING):
        folder, _ = latest_checkpoint(tmp_path)
    assert folder.name == "step_000002"
    assert "step_000004 is not usable" in caplog.text


def test_a_crash_while_writing_leaves_the_checkpoint_before_it(tmp_path):
    save_checkpoint(tmp_path, RunState(step=2), write, keep=3)

    def crash(folder: str) -> None:
        write(folder)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, RunState(step=4), crash, keep=3)
    folder, _ = latest_checkpoint(tmp_path)
    assert folder.name == "step_000002"
    save_checkpoint(tmp_path, RunState(step=4), write, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000004"]


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "nothing") is None
