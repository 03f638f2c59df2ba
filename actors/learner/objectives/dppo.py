"""Flow-DPPO. Shape legend: N decisions, K actions, Z latent dimensions."""

import torch
from torch import Tensor

from actors.learner.objectives.decisions import DecisionObjective, DecisionRows, Surrogate
from actors.methods.flow_dppo import DppoSettings
from actors.policy.kernels import mean_square


class FlowDppo(DecisionObjective):
    """−A·ρ where the update may go on, and 0 where it leaves the trust region; ρ = exp(log p − log p_old).

    The trust region is D = mean (μ − μ_old)² / (2s²) < δ: the KL divergence of the two Normal distributions of an
    action (the paper's equation 14), as a mean over the latent dimensions. Outside it, an action has no gradient if ρ
    has already moved the way that the advantage asks for: ρ > 1 and A > 0, or ρ < 1 and A < 0 (equation 18). Actions
    that move back keep their gradient. D is the same for all siblings of a decision. β·KL is the kernel's.
    """

    settings: DppoSettings

    def old_from(self, micro: DecisionRows, mean_NZ: Tensor) -> Tensor:
        """μ, (N, Z)."""
        return mean_NZ

    def surrogate(self, micro: DecisionRows, mean_NZ: Tensor, old: Tensor) -> Surrogate:
        old_NK, std_N = self.log_prob(micro, old), self.kernel.std_T[micro.step_N]
        ratio_NK = (self.log_prob(micro, mean_NZ) - old_NK).exp()
        outside_N = mean_square(mean_NZ.detach() - old) / (2 * std_N.square()) >= self.settings.max_divergence
        further_NK = (ratio_NK.detach() - 1) * micro.advantage_NK > 0
        stopped_NK = outside_N.unsqueeze(1) & further_NK
        loss_NK = (-micro.advantage_NK * ratio_NK).masked_fill(stopped_NK, 0)
        return Surrogate(ratio_NK, loss_NK, stopped_NK, torch.ones_like(std_N).unsqueeze(1), old_NK)
