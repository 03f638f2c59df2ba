"""Diffusion-DPO. Shape legend: N rows, P pairs, Z latent dimensions."""

import numpy as np
from torch import Tensor
from torch.nn.functional import logsigmoid

from actors.learner.objectives.leaves import LeafObjective, LeafRows
from actors.learner.objectives.objective import Loss
from actors.methods.dpo import DpoSettings
from actors.policy.kernels import mean_square
from actors.trajectory import Leaves


class Dpo(LeafObjective):
    """−log σ(−β/2·(Δ_w − Δ_l)) with Δ = mean‖v − (ε − x₀)‖² − mean‖v_ref − (ε − x₀)‖².

    w is the best image of a prompt and l the worst one, both with the same ε at the same t. v_ref is the velocity of
    the copy that images are sampled from, or of the base. The rows of a pair are neighbours: first w, then l. The paper
    and the deviations are in `actors/methods/dpo.py`.
    """

    settings: DpoSettings

    def planned(self, item: Leaves) -> float:
        return super().planned(item) / 2

    def chosen(self, advantage_M: np.ndarray, finite_M: np.ndarray) -> np.ndarray:
        """The best and the worst image, or nothing. The advantage of a hole is 0, between that of the two."""
        advantage_M = np.where(finite_M, advantage_M, 0.0)
        best, worst = advantage_M.argmax(), advantage_M.argmin()
        differ = advantage_M[best] > 0 > advantage_M[worst]
        return np.array([[best, worst]] if differ else [], np.int64).reshape(-1, 2)

    def loss(self, micro: LeafRows, old: Tensor | None) -> Loss:
        v_NZ = self.predicted(micro)
        with self.reference() if self.settings.compares_with_reference else self.compared():
            reference_NZ = self.predicted(micro)
        delta_N = mean_square(v_NZ - micro.target_NZ) - mean_square(reference_NZ - micro.target_NZ)
        policy_P = -logsigmoid(-self.settings.beta / 2 * (delta_N[0::2] - delta_N[1::2]))
        return self.without_ratio(micro, v_NZ, policy_P[: micro.real // 2])
