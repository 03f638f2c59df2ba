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

BUCKET_BYTES = 2**30
"""The most bytes of one object in the store. A larger array is an object of its own."""


@dataclass(frozen=True)
class Label:
    """The description of a policy version's weights, without the arrays."""

    version: int
    checksum: str
    num_bytes: int


@dataclass(frozen=True)
class Exported:
    """Weights of one policy version, in a form that workers can load, and their label."""

    buckets: tuple[ObjectRef | Arrays, ...]
    """A few arrays each: references to them in the object store, or the arrays themselves within one process."""
    label: Label


@dataclass(frozen=True)
class Weights:
    """The trained parameters of one policy version, on the CPU."""

    version: int
    """The number of training steps that made them; 0 for the initial weights."""
    checksum: str
    arrays: Arrays

    @property
    def label(self) -> Label:
        return Label(self.version, self.checksum, sum(array.nbytes for array in self.arrays.values()))


def bucketed(num_bytes: Mapping[str, int], most: int = BUCKET_BYTES) -> list[list[str]]:
    """The names of arrays of these sizes, in buckets that are filled one after another. There is at least one."""
    buckets: list[list[str]] = [[]]
    filled = 0
    for name, size in num_bytes.items():
        if buckets[-1] and filled + size > most:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled += size
    return buckets


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """A digest of names, shapes, types and bytes, independent of the order of the mapping."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.shape}{array.dtype}".encode())
        digest.update(array.data)
    return digest.hexdigest()
