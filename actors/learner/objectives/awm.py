"""Advantage-weighted matching. Shape legend: N rows, Z latent dimensions."""

import torch
from torch import Tensor

from actors.learner.objectives.leaves import LeafObjective, LeafRows
from actors.learner.objectives.objective import Loss, clipped_surrogate
from actors.methods.awm import AwmSettings
from actors.policy.kernels import mean_square

EPSILON = 1e-10
ADVANTAGE_SCALE = 5.0


class Awm(LeafObjective):
    """max(−A·ρ, −A·clip(ρ, 1 ± c)) + β·mean‖v − v_ref‖² + γ·mean‖v − v_ema‖².

    ρ = exp(log p − log p_old) of the surrogate log p = −t·[(m + ε)^q − ε^q]/q with m = mean‖v − (ε − x₀)‖², the
    flow-matching loss at a noised image; A is clipped to ±5 and divided by 5. The paper and the deviations are in
    `actors/methods/awm.py`.
    """

    settings: AwmSettings

    def log_prob(self, micro: LeafRows, v_NZ: Tensor) -> Tensor:
        """The surrogate, (N,)."""
        power = self.settings.power
        m_N = mean_square(v_NZ - micro.target_NZ)
        return -micro.time_N * ((m_N + EPSILON) ** power - EPSILON**power) / power

    def old(self, micro: LeafRows) -> Tensor:
        """log p, (N,)."""
        return self.log_prob(micro, self.predicted(micro)).detach()

    def loss(self, micro: LeafRows, old: Tensor | None) -> Loss:
        settings, v_NZ = self.settings, self.predicted(micro)
        log_prob_N = self.log_prob(micro, v_NZ)
        old_N = log_prob_N.detach() if old is None else old
        ratio_N = (log_prob_N - old_N).exp()
        advantage_N = micro.advantage_N.clamp(-ADVANTAGE_SCALE, ADVANTAGE_SCALE) / ADVANTAGE_SCALE
        policy_N, clipped_N = clipped_surrogate(ratio_N, advantage_N, settings.clip_range)
        policy = policy_N[: micro.real].sum()
        none = torch.zeros_like(policy)
        kl = self.distance(micro, v_NZ, self.reference()) if settings.kl else none
        pull = self.distance(micro, v_NZ, self.compared()) if settings.ema_weight else none
        return Loss(
            policy + settings.kl * kl + settings.ema_weight * pull,
            policy.detach(),
            kl.detach(),
            ratio_N.detach()[: micro.real, None],
            clipped_N[: micro.real, None],
            old_N,
        )
