"""A learner's state as safetensors: one file for each kind of tensors, or one for each rank if they are sharded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor

from actors.learner.ranks import Ranks
from actors.policy.sharding import is_sharded, local, placed
from services.base.storage import Folder


def packed(name: str, tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, bytes]:
    """The file `name`.safetensors, which only the first rank has, or this rank's part, `name`.RANK.safetensors."""
    sharded = any(is_sharded(tensor) for tensor in tensors.values())
    if not sharded and ranks.rank:
        return {}
    file = f"{name}.{ranks.rank:05d}.safetensors" if sharded else f"{name}.safetensors"
    return {file: save({key: local(tensor.detach()).contiguous() for key, tensor in tensors.items()})}


def whole(name: str, folder: Folder) -> dict[str, Tensor]:
    """The whole tensors that any number of ranks packed under a name. It needs no learner.

    Raises:
        FileNotFoundError: there is no file of this name.
    """
    parts = _read(name, folder)
    if not parts:
        raise FileNotFoundError(f"no {name}.safetensors in {folder}")
    return {key: _joined(key, parts) for key in parts[0]}


def unpacked(name: str, like: Mapping[str, Tensor], folder: Folder) -> Iterator[tuple[str, Tensor]]:
    """The tensors that any number of ranks packed under a name, one at a time.

    Each is placed on the device of its namesake in `like` and sharded in the same way. A name in `like` that was not
    packed is left out.
    """
    parts = _read(name, folder)
    for key, target in like.items():
        if key in parts[0]:
            yield key, placed(_joined(key, parts), target)


def _read(name: str, folder: Folder) -> list[dict[str, Tensor]]:
    """The files of a name, in the order of the ranks."""
    files = [file for file in folder.names() if file.startswith(f"{name}.") and file.endswith(".safetensors")]
    return [load(folder.read(file)) for file in files]


def _joined(key: str, parts: list[dict[str, Tensor]]) -> Tensor:
    """One tensor from the rows that each rank packed. A tensor without dimensions is the same on every rank."""
    first = parts[0][key]
    return torch.cat([part[key] for part in parts]) if len(parts) > 1 and first.dim() else first
