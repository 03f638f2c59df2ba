"""The common part of objectives on finished images: noised copies of x₀ at a few noise levels.

Shape legend: M images, J noise levels for each image, N rows, Z latent dimensions.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from actors.learner.objectives.objective import Objective, padded_rows
from actors.learner.settings import LeafObjectiveSettings
from actors.policy.kernels import mean_square, per_row
from actors.policy.noise import noise
from actors.trajectory import Leaves

LEARNER_STREAM = 12
"""A part of the address that makes the learner's noise differ from the rollout's."""


@dataclass(frozen=True)
class LeafRows:
    """Noised images of one task on the device, padded to the fixed size."""

    x_NZ: Tensor
    """x_t = (1 − t)·x₀ + t·ε."""
    image_NZ: Tensor
    """x₀."""
    target_NZ: Tensor
    """ε − x₀."""
    time_N: Tensor
    """t, the noise level."""
    advantage_N: Tensor
    conditioning: dict[str, Tensor]
    real: int
    """Rows that are not padding."""


class LeafObjective(Objective[Leaves, LeafRows]):
    """An objective that trains the velocity at noised images, with one forward and one backward for each row.

    Noise levels are points of the sampling schedule, one from each of J runs of neighbouring steps. They and the noise
    follow from the task's address, so an update can be repeated. An image with NaN or infinity is left out, but counts
    in the denominator.
    """

    settings: LeafObjectiveSettings

    @cached_property
    def levels(self) -> list[list[int]]:
        """The runs of neighbouring sampling steps. One noise level is drawn from each."""
        return self.settings.levels(len(self.policy.sigmas) - 1)

    def planned(self, item: Leaves) -> float:
        return float(len(item.latent_MZ) * len(self.levels))

    def micro_batches(self, item: Leaves, advantage_NK: np.ndarray) -> Iterator[LeafRows]:
        images = len(item.latent_MZ)
        finite_M = np.isfinite(item.latent_MZ).reshape(images, -1).all(axis=1)
        step_MJ = np.stack([self._steps(item.address, m) for m in range(images)])
        image_R = np.repeat(np.arange(images), step_MJ.shape[1])
        addresses = [(*item.address, m, LEARNER_STREAM, j) for m in range(images) for j in range(step_MJ.shape[1])]
        conditioning = self.rows_of(item.conditioning, self.micro_batch)
        for rows, real in padded_rows(np.flatnonzero(finite_M[image_R]), self.micro_batch):
            x0_NZ = self.on_device(item.latent_MZ[image_R[rows]])
            noise_NZ = noise([addresses[r] for r in rows], item.latent_MZ.shape[1:]).to(self.policy.device)
            time_N = self.policy.sigmas[self.on_device(step_MJ.reshape(-1)[rows])]
            t_N1 = per_row(time_N, x0_NZ)
            yield LeafRows(
                (1 - t_N1) * x0_NZ + t_N1 * noise_NZ,
                x0_NZ,
                noise_NZ - x0_NZ,
                time_N,
                self.on_device(advantage_NK[image_R[rows], 0].astype(np.float32)),
                conditioning,
                real,
            )

    def idle(self, item: Leaves) -> LeafRows:
        blank = replace(item, latent_MZ=np.zeros_like(item.latent_MZ))  # the task's own images may be of NaN
        return replace(next(self.micro_batches(blank, np.zeros((len(item.latent_MZ), 1)))), real=0)

    def _steps(self, address: tuple[int, int, int], image: int) -> np.ndarray:
        rng = np.random.default_rng([LEARNER_STREAM, *address, image])
        return np.array([rng.choice(steps) for steps in self.levels])

    def predicted(self, micro: LeafRows) -> Tensor:
        """v at the noised images, (N, Z)."""
        return self.velocity(micro.x_NZ, micro.time_N, micro.conditioning)

    def distance(self, micro: LeafRows, v_NZ: Tensor, other: AbstractContextManager[None]) -> Tensor:
        """Sum over rows of mean‖v − v_other‖², v_other being that of the policy within the context `other`."""
        with other:
            other_NZ = self.predicted(micro)
        return mean_square(v_NZ - other_NZ)[: micro.real].sum()
