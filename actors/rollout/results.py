"""The results that rollout workers return to the training loop."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.rollout.images import Images
from actors.trajectory import Cost, Task, Tree


@dataclass(frozen=True)
class Generated:
    """A finished task."""

    task: Task
    experience: Any
    """The learner's training data, or a reference to it in the object store."""
    tree: Tree
    images: Images
    """One image for each leaf of the tree."""
    finite_M: np.ndarray
    """Whether each image is finite; an image that is not is a hole."""
    cost: Cost


@dataclass(frozen=True)
class Sampled:
    """Deterministic images, one for each prompt."""

    images: Images
    finite_M: np.ndarray
    """Whether each image is finite; an image that is not is a hole."""


@dataclass(frozen=True)
class RolloutStatus:
    """The present state of the rollout workers."""

    workers: int
    """The number of workers that take jobs."""
    replaced: int
    """The number of workers that died or hung and were replaced since the run began."""
    versions: dict[int, int]
    """The policy version that each worker has, by slot."""
