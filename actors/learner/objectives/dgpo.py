"""Direct group preference optimization. Shape legend: M images, W of them finite, N rows, R of them real, Z latent
dimensions."""

import numpy as np
import torch
from torch import Tensor

from actors.learner.objectives.leaves import LeafObjective, LeafRows
from actors.learner.objectives.objective import Loss
from actors.methods.dgpo import DgpoSettings
from actors.policy.kernels import mean_square


class Dgpo(LeafObjective):
    """A·σ(s)·m + β_KL·mean‖v − v_ref‖², with m = mean‖v − (ε − x₀)‖².

    s is the mean of β·A·(m − m_ref) over the images of the prompt, all with the same ε at the same t. σ(s) is held
    constant. The better the policy already tells good images from bad ones, the smaller it is. The gradient of m is cut
    off where m has left m_old far enough: where exp(m_old − m) > 1 + c and A > 0, or exp(m_old − m) < 1 − c and A < 0.
    m_ref is that of the base, and m_old that of a copy that follows the trained weights quickly. The paper and the
    deviations are in `actors/methods/dgpo.py`.
    """

    settings: DgpoSettings

    def chosen(self, advantage_M: np.ndarray, finite_M: np.ndarray) -> np.ndarray:
        """All finite images together, holes included: their advantage is 0. Nothing if all advantages are 0."""
        finite = np.flatnonzero(finite_M)
        return finite[None] if advantage_M[finite].any() else np.empty((0, 1), np.int64)

    def loss(self, micro: LeafRows, old: Tensor | None) -> Loss:
        settings, real = self.settings, slice(micro.real)
        v_NZ, advantage_R = self.predicted(micro), micro.advantage_N[real]
        with self.compared():
            old_R = mean_square(self.predicted(micro) - micro.target_NZ)[real]
        with self.reference():
            reference_NZ = self.predicted(micro)
        miss_R = mean_square(v_NZ - micro.target_NZ)[real]
        reference_R = mean_square(reference_NZ - micro.target_NZ)[real]
        preferred_R = settings.beta * advantage_R * (miss_R.detach() - reference_R)
        weight_R = preferred_R.view(-1, micro.together).mean(1).sigmoid().repeat_interleave(micro.together)
        ratio_R = (old_R - miss_R.detach()).exp()
        c = settings.clip_range
        clipped_R = torch.where(advantage_R > 0, ratio_R > 1 + c, ratio_R < 1 - c)
        policy = (weight_R * advantage_R * torch.where(clipped_R, miss_R.detach(), miss_R)).sum()
        kl = mean_square(v_NZ - reference_NZ)[real].sum()
        return Loss(policy + settings.kl * kl, policy.detach(), kl.detach(), ratio_R[:, None], clipped_R[:, None])
