"""The common part of objectives on decisions: micro-batches, means, and the KL term.

One forward and one backward serve all K siblings of a decision: they share the state and therefore the velocity, and
∂L/∂v is the sum over them. Shape legend: N decisions, K actions, Z latent dimensions, T steps.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from actors.learner.objectives.objective import Loss, Objective, padded_rows
from actors.learner.settings import DecisionObjectiveSettings
from actors.policy.noise import noise
from actors.trajectory import Decisions


@dataclass(frozen=True)
class DecisionRows:
    """Decisions of one task on the device, padded to the fixed size with advantage 0."""

    state_NZ: Tensor
    action_NKZ: Tensor
    step_N: Tensor
    advantage_NK: Tensor
    behaviour_NK: Tensor
    weight_N: Tensor
    """1 / (chance that the plan drew the decision's step)."""
    conditioning: dict[str, Tensor]
    real: int
    """Rows that are not padding."""


@dataclass(frozen=True)
class Surrogate:
    """The part of the loss with the advantages, of a micro-batch."""

    ratio_NK: Tensor
    """ρ, by which the advantage is multiplied."""
    loss_NK: Tensor
    """−A·ρ, kept in bounds."""
    clipped_NK: Tensor
    """Whether the bounds cut the gradient."""
    weight_N1: Tensor
    """The weight of each decision in the loss."""
    old_log_prob_NK: Tensor
    """log p of the actions under the old policy."""


class DecisionObjective(Objective[Decisions, DecisionRows]):
    """An objective that compares the log-probabilities of actions. It draws the noise of the actions again.

    If all siblings of a decision have advantage 0, only the KL term has a gradient. Without a KL term, the decision
    is left out. A decision with NaN or infinity in its state or in its mean is left out, too, with all its actions.
    Such decisions, holes and groups without spread still count in the denominator, so that the size of an update does
    not depend on how many there are. The reference codes drop them.
    """

    settings: DecisionObjectiveSettings

    def planned(self, item: Decisions) -> float:
        return float(item.weight_N.sum()) * item.log_prob_NK.shape[1]

    def micro_batches(self, item: Decisions, advantage_NK: np.ndarray) -> Iterator[DecisionRows]:
        trained_N = _finite(item.state_NZ) & _finite(item.mean_NZ)
        if not self.settings.kl:
            trained_N &= advantage_NK.any(axis=1)
        conditioning = self.rows_of(item.conditioning, self.micro_batch)
        for rows, real in padded_rows(np.flatnonzero(trained_N), self.micro_batch):
            yield self._rows(item, advantage_NK, conditioning, rows, real)

    def idle(self, item: Decisions) -> DecisionRows:
        conditioning = self.rows_of(item.conditioning, self.micro_batch)
        still_1Z = np.zeros_like(item.state_NZ[:1])  # the task's own states may be of NaN
        blank = replace(item, state_NZ=still_1Z, mean_NZ=still_1Z, log_prob_NK=np.zeros_like(item.log_prob_NK[:1]))
        return self._rows(blank, blank.log_prob_NK, conditioning, np.zeros(self.micro_batch, int), 0)

    def _rows(
        self, item: Decisions, advantage_NK: np.ndarray, conditioning: dict[str, Tensor], rows: np.ndarray, real: int
    ) -> DecisionRows:
        advantage = advantage_NK[rows].astype(np.float32)
        advantage[real:] = 0
        noise_NKZ = torch.stack([noise(item.noise_NK[row], item.state_NZ.shape[1:]) for row in rows])
        noise_NKZ = noise_NKZ.to(self.policy.device, non_blocking=True)
        mean_NZ, step_N = self.on_device(item.mean_NZ[rows]), self.on_device(item.step_N[rows])
        return DecisionRows(
            self.on_device(item.state_NZ[rows]),
            self.kernel.action(mean_NZ, noise_NKZ, step_N),
            step_N,
            self.on_device(advantage),
            self.on_device(item.log_prob_NK[rows]),
            self.on_device(item.weight_N[rows]),
            conditioning,
            real,
        )

    def mean(self, micro: DecisionRows) -> Tensor:
        """μ of each decision, (N, Z)."""
        sigma_N = self.policy.sigmas[micro.step_N]
        return self.kernel.mean(
            micro.state_NZ, self.velocity(micro.state_NZ, sigma_N, micro.conditioning), micro.step_N
        )

    def old(self, micro: DecisionRows) -> Tensor:
        """The values that the loss compares with, computed by the same graph as in the update."""
        return self.old_from(micro, self.mean(micro)).detach()

    def old_from(self, micro: DecisionRows, mean_NZ: Tensor) -> Tensor:
        """The part of the old policy's μ that the loss compares with: log p of the actions, (N, K)."""
        return self.log_prob(micro, mean_NZ)

    def log_prob(self, micro: DecisionRows, mean_NZ: Tensor) -> Tensor:
        """log p of the actions around μ, (N, K)."""
        return self.kernel.log_prob(micro.action_NKZ, mean_NZ, micro.step_N)

    def loss(self, micro: DecisionRows, old: Tensor | None) -> Loss:
        mean_NZ = self.mean(micro)
        old = self.old_from(micro, mean_NZ).detach() if old is None else old
        surrogate = self.surrogate(micro, mean_NZ, old)
        policy = (micro.weight_N.unsqueeze(1) * surrogate.weight_N1 * surrogate.loss_NK).sum()
        kl = torch.zeros_like(policy)
        if self.settings.kl:
            with self.reference():
                reference_NZ = self.mean(micro)
            apart_N = self.kernel.divergence(mean_NZ, reference_NZ, micro.step_N, self.settings.kl_dt)
            kl = (micro.weight_N * apart_N)[: micro.real].sum() * surrogate.loss_NK.shape[1]
        real = slice(None, micro.real)
        return Loss(
            policy + self.settings.kl * kl,
            policy.detach(),
            kl.detach(),
            surrogate.ratio_NK.detach()[real],
            surrogate.clipped_NK[real],
            old,
            (micro.step_N[real], (surrogate.old_log_prob_NK - micro.behaviour_NK)[real]),
        )

    @abstractmethod
    def surrogate(self, micro: DecisionRows, mean_NZ: Tensor, old: Tensor) -> Surrogate:
        """The part of the loss with the advantages.

        Args:
            mean_NZ: μ now.
            old: the result of `old_from` with the old policy, without gradient.
        """


def _finite(values_NZ: np.ndarray) -> np.ndarray:
    """Whether all values of a row are finite, (N,). It tests the sum of a row, which needs no array of booleans."""
    with np.errstate(invalid="ignore"):
        return np.isfinite(values_NZ.reshape(len(values_NZ), -1).sum(axis=1))
