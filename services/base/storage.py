"""Folders on a local disk or behind any URI that `pyarrow.fs` knows (`s3://`, `gs://`, `hdfs://`, …)."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from services.base.errors import UserError, first_line


def is_local(place: str) -> bool:
    """Whether a place is a path, not a URI."""
    return "://" not in place


@dataclass(frozen=True)
class Folder:
    """A folder on a file system. Failures of the storage are OSErrors.

    The storage's library finds credentials in the environment or the machine's role. They are never in the URI.
    """

    system: FileSystem
    path: str

    @classmethod
    def at(cls, place: str) -> Folder:
        """The folder at a path or a URI.

        Raises:
            UserError: the kind of storage is unknown.
        """
        if is_local(place):
            return cls(LocalFileSystem(), place)
        try:
            return cls(*FileSystem.from_uri(place))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                f"`{place}` does not name a known storage ({first_line(error)}); give a path or a URI such as s3://bucket/prefix"
            ) from error

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.system, f"{self.path}/{name}")

    def __str__(self) -> str:
        return f"{self.system.type_name}://{self.path}" if self.local is None else self.path

    @property
    def local(self) -> Path | None:
        """The folder's path if it is on a file system of this machine, else None."""
        return Path(self.path) if isinstance(self.system, LocalFileSystem) else None

    def write(self, name: str, content: bytes) -> str:
        """Write a file and return its SHA-256. Even after a loss of power, the file is complete or does not exist."""
        if self.local is not None:
            write_atomically(self.local / name, content)
        else:
            self.system.create_dir(self.path, recursive=True)
            aside, target = f"{self.path}/.{name}.tmp", f"{self.path}/{name}"
            with self.system.open_output_stream(aside, compression=None) as file:
                file.write(content)
            self.system.move(aside, target)
        return hashlib.sha256(content).hexdigest()

    def read(self, name: str) -> bytes:
        with self.system.open_input_stream(f"{self.path}/{name}", compression=None) as file:
            return file.read()

    def sha256(self, name: str) -> str:
        with self.system.open_input_stream(f"{self.path}/{name}", compression=None) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def names(self) -> list[str]:
        """The sorted names of the files and folders in the folder. The list is empty if the folder does not exist."""
        return sorted(info.base_name for info in self._infos())

    def folders(self) -> list[str]:
        """The sorted names of the folders in the folder."""
        return sorted(info.base_name for info in self._infos() if info.type == FileType.Directory)

    def _infos(self) -> list[FileInfo]:
        return self.system.get_file_info(FileSelector(self.path, allow_not_found=True))

    def remove(self) -> None:
        """Remove the folder and its content, if it exists."""
        info: FileInfo = self.system.get_file_info(self.path)
        if info.type != FileType.NotFound:
            self.system.delete_dir(self.path)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace a file atomically: a reader sees either the old bytes or the new ones, never a mixture.

    When this returns, the new bytes survive a loss of power.
    """
    with replacing(path) as aside:
        aside.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file atomically by one that the caller writes to the path that this gives.

    When the block has ended, the new file survives a loss of power. If the block raises, or the process is killed in
    it, the old file stays.
    """
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}.tmp")
    yield aside
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)  # noqa: PTH105 (the tests record the calls of `os`)
    sync_folder(path.parent)


def append(path: Path, content: bytes) -> None:
    """Append to a file, which is made if it is missing. The new bytes survive a loss of power."""
    is_new = not path.exists()
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and the folders above it, so that they survive a loss of power."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some network file systems sync files only.
            raise
    finally:
        os.close(descriptor)


def sync_files(folder: Path) -> None:
    """Make all files below a folder survive a loss of power, whichever process wrote them."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def refuse_broken_link(path: Path) -> None:
    """Refuse a path with a broken link. Treated as a new, empty folder, it would hide that data is missing.

    Raises:
        UserError: the path, or a folder above it, is a link to something that does not exist.
    """
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise UserError(
                f"`{place}` is a link to `{place.readlink()}`, which does not exist; "
                "mount or restore its target, or remove the link"
            )
