"""Folders on a local disk or behind any URI that `pyarrow.fs` knows (`s3://`, `gs://`, `hdfs://`, …)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from services.errors import UserError, first_line


def is_local(place: str) -> bool:
    """Whether a place is a path, not a URI."""
    return "://" not in place


@dataclass(frozen=True)
class Folder:
    """A folder and the file system that it lies on. Failures of the storage are OSErrors.

    Credentials come from the environment or the machine's role, as the storage's own tools find them; never from a URI.
    """

    system: FileSystem
    path: str

    @classmethod
    def at(cls, place: str) -> Folder:
        """The folder at a path or a URI.

        Raises:
            UserError: no such kind of storage.
        """
        if is_local(place):
            return cls(LocalFileSystem(), place)
        try:
            return cls(*FileSystem.from_uri(place))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"`{place}` names no storage: {first_line(error)}") from error

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.system, f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.path if isinstance(self.system, LocalFileSystem) else f"{self.system.type_name}://{self.path}"

    def write(self, name: str, content: bytes) -> str:
        """Write a file, which is there as a whole or not at all; returns its SHA-256."""
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
        """Of the files and folders in it, sorted; none where there is no such folder."""
        found = self.system.get_file_info(FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def remove(self) -> None:
        """The folder and all that is in it, if it is there."""
        info: FileInfo = self.system.get_file_info(self.path)
        if info.type != FileType.NotFound:
            self.system.delete_dir(self.path)
