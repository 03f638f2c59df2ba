"""A learner's state on disk: safetensors, one file, or one a rank where tensors are sharded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from actors.learner.ranks import Ranks
from actors.policy.sharding import is_sharded, local, placed


@dataclass(frozen=True)
class Parts:
    """Writes and reads the tensors of a folder."""

    folder: Path
    ranks: Ranks

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write `name`.safetensors, the first rank alone; or this rank's part, `name`.RANK.safetensors."""
        sharded = any(is_sharded(tensor) for tensor in tensors.values())
        if sharded or not self.ranks.rank:
            file = self.folder / (f"{name}.{self.ranks.rank:05d}.safetensors" if sharded else f"{name}.safetensors")
            save_file({key: local(tensor.detach()).contiguous() for key, tensor in tensors.items()}, file)

    def load(self, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read what any number of ranks wrote, those of `like` that were written, each placed as in `like`."""
        files = sorted(self.folder.glob(f"{name}.*.safetensors")) or [self.folder / f"{name}.safetensors"]
        parts = [safe_open(file, "pt") for file in files]
        return {
            key: placed(
                torch.cat([part.get_tensor(key) for part in parts])
                if len(parts) > 1 and target.dim()
                else parts[0].get_tensor(key),
                target,
            )
            for key, target in like.items()
            if key in parts[0].keys()  # noqa: SIM118
        }
