"""Reads the headers of safetensors files, which list the tensors, without reading the tensors."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from services.base.errors import UserError

Shapes = dict[str, tuple[int, ...]]

LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, a little-endian number of this many bytes. The header is
padded to a multiple of this many bytes."""


@contextmanager
def opened(path: Path, framework: str = "np") -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        UserError: the file is torn or has another format.
    """
    try:
        with safe_open(path, framework) as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"`{path}` is torn or not a safetensors file ({error}); copy it again") from error


@contextmanager
def naming_storage_errors() -> Iterator[None]:
    """Turn an error of safetensors that names a failure of the storage back into that OSError.

    Raises:
        OSError: the storage failed.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def shapes_of(file: Any) -> Shapes:
    """The shape of each tensor of an open file, by name."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def shapes_below(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of each tensor in the safetensors files below a folder. Names may repeat between files.

    Raises:
        UserError: a file is torn.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        with opened(path) as file:
            yield from shapes_of(file).items()


def is_whole(folder: Path) -> bool:
    """Whether a folder has all files of a model: each file that the index names, or any file if there is no index.

    An interrupted download leaves only some of the files. The loader downloads the rest.
    """
    for index in folder.glob("*.safetensors.index.json"):
        files = set(json.loads(index.read_text())["weight_map"].values())
        return all((folder / file).is_file() for file in files)
    return any(folder.glob("*.safetensors"))


def sort_metadata(path: Path) -> None:
    """Rewrite a safetensors file with its metadata sorted by key.

    The library (0.6) writes metadata in a different order each time, so equal contents would give different bytes.
    """
    content = path.read_bytes()
    start = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    path.write_bytes(len(text).to_bytes(LENGTH_BYTES, "little") + text + content[start:])
