"""The headers of safetensors files: what a file holds, without reading its tensors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from services.base.errors import UserError

Shapes = dict[str, tuple[int, ...]]

LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian; the header is padded to a multiple of it."""


@contextmanager
def opened(path: Path, framework: str = "np") -> Iterator[Any]:
    """A safetensors file.

    Raises:
        UserError: it is torn, or of another format.
    """
    try:
        with safe_open(path, framework) as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"`{path}` is torn or no safetensors file ({error}); copy it again") from error


def shapes_of(file: Any) -> Shapes:
    """Shape of each tensor of an open file, by name."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def shapes_below(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor in the safetensors files below a folder; the parts of a pipeline share names.

    Raises:
        UserError: a file is torn.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        with opened(path) as file:
            yield from shapes_of(file).items()


def is_whole(folder: Path) -> bool:
    """Whether a folder holds all files of a model: each that its index names, or one where it has no index.

    A download that was interrupted leaves a part of them; the loader fetches the rest.
    """
    for index in folder.glob("*.safetensors.index.json"):
        files = set(json.loads(index.read_text())["weight_map"].values())
        return all((folder / file).is_file() for file in files)
    return any(folder.glob("*.safetensors"))


def sort_metadata(path: Path) -> None:
    """Write the metadata of a safetensors file in the order of its keys.

    The library (0.6) writes them in an order that differs from call to call, so equal contents are not equal bytes.
    """
    content = path.read_bytes()
    start = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    path.write_bytes(len(text).to_bytes(LENGTH_BYTES, "little") + text + content[start:])
