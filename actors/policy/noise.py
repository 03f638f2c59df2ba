"""Random numbers with an address: the same address gives the same noise on any worker, after any retry."""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from actors.trajectory import Address


def noise(addresses: Sequence[Address], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, (len(addresses), *shape) fp32 on the CPU, each row from its address alone."""
    return torch.stack([_noise(address, shape) for address in addresses])


def _noise(address: Address, shape: tuple[int, ...]) -> Tensor:
    packed = struct.pack(f"<{len(address)}q", *address)
    seed = int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little", signed=True)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
