"""Supervised fine-tuning on the best image of each prompt. Shape legend: N rows."""

import numpy as np
from torch import Tensor

from actors.learner.objectives.leaves import LeafObjective, LeafRows
from actors.learner.objectives.objective import Loss
from actors.methods.sft import SftSettings
from actors.policy.kernels import mean_square


class Sft(LeafObjective):
    """mean‖v − (ε − x₀)‖² on the best image of a prompt, + β·mean‖v − v_ref‖².

    The paper and the deviations are in `actors/methods/sft.py`.
    """

    settings: SftSettings

    def chosen(self, advantage_M: np.ndarray, finite_M: np.ndarray) -> np.ndarray:
        """The best image; nothing if no image is better than another."""
        advantage_M = np.where(finite_M, advantage_M, 0.0)
        best = advantage_M.argmax()
        return np.array([[best]] if advantage_M[best] > 0 else [], np.int64).reshape(-1, 1)

    def loss(self, micro: LeafRows, old: Tensor | None) -> Loss:
        v_NZ = self.predicted(micro)
        return self.without_ratio(micro, v_NZ, mean_square(v_NZ - micro.target_NZ)[: micro.real])
