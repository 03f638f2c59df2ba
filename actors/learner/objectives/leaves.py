"""The common part of objectives on finished images: noised copies of x₀ at a few noise levels.

Shape legend: M images, S sets of W images, N rows, Z latent dimensions.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from actors.learner.objectives.objective import Loss, Objective, padded_rows
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
    together: int
    """The length of a run of rows with the same noise and noise level, whose images are compared with each other."""


class LeafObjective(Objective[Leaves, LeafRows]):
    """An objective that trains the velocity at noised images, with one forward and one backward for each row.

    Noise levels are points of the sampling schedule, one from each run of neighbouring steps. They and the noise follow
    from the task's address, so an update can be repeated. An image with NaN or infinity is left out, but counts in the
    denominator.
    """

    settings: LeafObjectiveSettings

    @cached_property
    def levels(self) -> list[list[int]]:
        """The runs of neighbouring sampling steps. One noise level is drawn from each."""
        return self.settings.levels(len(self.policy.sigmas) - 1)

    def planned(self, item: Leaves) -> float:
        return float(self.settings.rows(len(item.latent_MZ), len(self.policy.sigmas) - 1))

    def chosen(self, advantage_M: np.ndarray, finite_M: np.ndarray) -> np.ndarray:
        """The images that are trained on, (S, W). The images of a set have the same noise and the same noise levels.
        Their rows are neighbours in one micro-batch. By default, each finite image is a set.

        Args:
            advantage_M: 0 for a hole, and for all images of a flat group.
            finite_M: whether the latent of an image is finite.
        """
        return np.flatnonzero(finite_M)[:, None]

    def micro_batches(self, item: Leaves, advantage_NK: np.ndarray) -> Iterator[LeafRows]:
        advantage_M = advantage_NK[:, 0]
        finite_M = np.isfinite(item.latent_MZ).reshape(len(item.latent_MZ), -1).all(axis=1)
        chosen_SW = self.chosen(advantage_M, finite_M)
        rows = [
            (image, step, (*item.address, images[0], LEARNER_STREAM, j))
            for images in chosen_SW.tolist()
            for j, step in enumerate(self._steps(item.address, images[0]))
            for image in images
        ]
        conditioning = self.rows_of(item.conditioning, self.micro_batch)
        together = chosen_SW.shape[1]
        for numbers, real in padded_rows(np.arange(len(rows)), self.micro_batch, together):
            images, steps, addresses = (list(column) for column in zip(*(rows[r] for r in numbers), strict=True))
            x0_NZ = self.on_device(item.latent_MZ[images])
            noise_NZ = noise(addresses, item.latent_MZ.shape[1:]).to(self.policy.device)
            time_N = self.policy.sigmas[self.on_device(np.array(steps))]
            t_N1 = per_row(time_N, x0_NZ)
            yield LeafRows(
                (1 - t_N1) * x0_NZ + t_N1 * noise_NZ,
                x0_NZ,
                noise_NZ - x0_NZ,
                time_N,
                self.on_device(advantage_M[images].astype(np.float32)),
                conditioning,
                real,
                together,
            )

    def idle(self, item: Leaves) -> LeafRows:
        rows = self.micro_batch
        blank_NZ = self.on_device(np.zeros((rows, *item.latent_MZ.shape[1:]), np.float32))
        zero_N = self.on_device(np.zeros(rows, np.float32))
        time_N = self.policy.sigmas[:1].expand(rows)
        return LeafRows(blank_NZ, blank_NZ, blank_NZ, time_N, zero_N, self.rows_of(item.conditioning, rows), 0, 1)

    def _steps(self, address: tuple[int, int, int], image: int) -> list[int]:
        rng = np.random.default_rng([LEARNER_STREAM, *address, image])
        return [int(rng.choice(steps)) for steps in self.levels]

    def predicted(self, micro: LeafRows) -> Tensor:
        """v at the noised images, (N, Z)."""
        return self.velocity(micro.x_NZ, micro.time_N, micro.conditioning)

    def distance(self, micro: LeafRows, v_NZ: Tensor, other: AbstractContextManager[None]) -> Tensor:
        """Sum over rows of mean‖v − v_other‖², v_other being that of the policy within the context `other`."""
        with other:
            other_NZ = self.predicted(micro)
        return mean_square(v_NZ - other_NZ)[: micro.real].sum()

    def without_ratio(self, micro: LeafRows, v_NZ: Tensor, policy_A: Tensor) -> Loss:
        """The loss of an objective that has no ratio, with its KL term.

        Args:
            policy_A: the summands of the part with the advantages, without padding.
        """
        policy = policy_A.sum()
        kl = self.distance(micro, v_NZ, self.reference()) if self.settings.kl else torch.zeros_like(policy)
        one_A1 = torch.ones_like(policy_A.detach())[:, None]
        clipped_A1 = torch.zeros_like(one_A1, dtype=torch.bool)
        return Loss(policy + self.settings.kl * kl, policy.detach(), kl.detach(), one_A1, clipped_A1)
