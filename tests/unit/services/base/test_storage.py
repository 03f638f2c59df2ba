"""Files that survive a loss of power, and paths that lead nowhere."""

import errno
import os
from pathlib import Path

import pytest

from services.base.errors import UserError
from services.base.storage import append, make_folder, refuse_broken_link, sync_files, sync_folder, write_atomically


@pytest.fixture
def synced(tmp_path, monkeypatch) -> list[str]:
    """What `os.fsync` was called for, by its path below the test's folder."""
    calls: list[str] = []
    fsync = os.fsync

    def recorded(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        calls.append(path.relative_to(tmp_path.resolve()).as_posix())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    return calls


def test_a_file_is_synced_with_each_folder_that_is_new(tmp_path, synced):
    write_atomically(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"
    assert synced == [".", "a", "a/b/.file.tmp", "a/b"]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    write_atomically(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_what_is_appended_is_synced_and_a_new_file_with_its_folder(tmp_path, synced):
    append(tmp_path / "lines", b"one\n")
    append(tmp_path / "lines", b"two\n")
    assert (tmp_path / "lines").read_bytes() == b"one\ntwo\n"
    assert synced == ["lines", ".", "lines"]


def test_a_folder_that_exists_is_not_synced_again(tmp_path, synced):
    make_folder(tmp_path)
    assert synced == []


def test_all_files_below_a_folder_are_synced(tmp_path, synced):
    (tmp_path / "model" / "part").mkdir(parents=True)
    (tmp_path / "model" / "part" / "weights").write_bytes(b"x")
    sync_files(tmp_path / "model")
    assert sorted(synced) == ["model", "model/part", "model/part/weights"]


def test_a_file_system_that_syncs_files_only_is_no_failure_and_any_other_error_is(tmp_path, monkeypatch):
    codes = iter([errno.EINVAL, errno.EIO])

    def fsync(descriptor):
        raise OSError(next(codes), "no")

    monkeypatch.setattr(os, "fsync", fsync)
    sync_folder(tmp_path)
    with pytest.raises(OSError, match="no"):
        sync_folder(tmp_path)


def test_a_link_to_something_that_is_missing_is_named_wherever_it_is_in_the_path(tmp_path):
    refuse_broken_link(tmp_path / "missing" / "run")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(UserError, match=f"`{tmp_path}/link` is a link to `{tmp_path}/target`"):
            refuse_broken_link(path)
    (tmp_path / "target").mkdir()
    refuse_broken_link(tmp_path / "link" / "run")
