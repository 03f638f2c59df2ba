"""The clipped GRPO objective. Shape legend: N decisions, K actions, Z latent dimensions, T steps."""

from functools import cached_property

import torch
from torch import Tensor

from actors.learner.objectives.decisions import DecisionObjective, DecisionRows, Surrogate
from actors.learner.objectives.objective import clipped_surrogate
from actors.learner.settings import GrpoSettings
from actors.policy.kernels import noise_weights


class Grpo(DecisionObjective):
    """w_i · max(−A·ρ, −A·clip(ρ, 1 ± c)) with ρ = exp(log p − log p_old), + β·KL.

    PPO's clipped surrogate as used by Flow-GRPO (arXiv 2505.05470) and, with w_i = s_i / mean(s), TempFlow-GRPO
    (arXiv 2508.04324). The log-probs are means over latent dimensions, so ρ is a trust-region heuristic.
    """

    settings: GrpoSettings

    @cached_property
    def weight_T(self) -> Tensor:
        """w_i of each sampling step; 0 for a step that is never trained."""
        std_T = self.kernel.std_T if self.settings.noise_weights else torch.ones_like(self.kernel.std_T)
        return noise_weights(std_T, self.trainable)

    def surrogate(self, micro: DecisionRows, mean_NZ: Tensor, old: Tensor) -> Surrogate:
        ratio_NK = (self.log_prob(micro, mean_NZ) - old).exp()
        clipped = clipped_surrogate(ratio_NK, micro.advantage_NK, self.settings.clip_range)
        return Surrogate(ratio_NK, *clipped, self.weight_T[micro.step_N].unsqueeze(1), old)
