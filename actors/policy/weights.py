"""Weights on their way from the learner to the workers: named arrays with a version and a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ray import ObjectRef

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Label:
    """What the weights are, without them."""

    version: int
    checksum: str
    num_bytes: int


@dataclass(frozen=True)
class Exported:
    """Weights in the object store, and what they are."""

    weights: ObjectRef
    label: Label


@dataclass(frozen=True)
class Weights:
    """The trained parameters of one policy version, on the CPU."""

    version: int
    """Optimizer updates (training steps) that made them; 0 is the initial adapter."""
    checksum: str
    arrays: Arrays

    @property
    def label(self) -> Label:
        return Label(self.version, self.checksum, sum(array.nbytes for array in self.arrays.values()))


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """A digest of names, shapes, types and bytes, independent of the order of the mapping."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.data)
    return digest.hexdigest()
