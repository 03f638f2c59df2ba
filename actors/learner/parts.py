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
    parts = [load(folder.read(file)) for file in _files(name, folder)]
    if not parts:
        raise FileNotFoundError(f"no {name}.safetensors in {folder}")
    return {
        key: torch.cat([part[key] for part in parts]) if len(parts) > 1 and tensor.dim() else tensor
        for key, tensor in parts[0].items()
    }


def _files(name: str, folder: Folder) -> list[str]:
    """The files of a name, in the order of the ranks."""
    return [file for file in folder.names() if file.startswith(f"{name}.") and file.endswith(".safetensors")]


def unpacked(name: str, like: Mapping[str, Tensor], folder: Folder) -> Iterator[tuple[str, Tensor]]:
    """What any number of ranks packed, those of `like` that were, each placed as in `like` when it is asked for."""
    parts = [load(folder.read(file)) for file in _files(name, folder)]
    for key, target in like.items():
        if key in parts[0]:
            whole = torch.cat([part[key] for part in parts]) if len(parts) > 1 and target.dim() else parts[0][key]
            yield key, placed(whole, target)
