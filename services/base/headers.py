"""What safetensors files hold, read from their headers alone."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from services.base.errors import UserError

Shapes = dict[str, tuple[int, ...]]


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
