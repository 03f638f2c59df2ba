"""The clipped GRPO objective. Shape legend: N decisions, K actions, Z latent dimensions, T steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from actors.learner.averages import Average
from actors.learner.objectives.decisions import DecisionObjective, DecisionRows, Terms
from actors.learner.settings import GrpoSettings
from actors.policy.kernels import Kernel, noise_weights
from actors.policy.policy import Policy


class Grpo(DecisionObjective):
    """w_i · max(−A·ρ, −A·clip(ρ, 1 ± c)) with ρ = exp(log p − log p_old), + β·KL.

    PPO's clipped surrogate as used by Flow-GRPO (arXiv 2505.05470) and, with w_i = s_i / mean(s), TempFlow-GRPO
    (arXiv 2508.04324). The log-probs are means over latent dimensions, so ρ is a trust-region heuristic.
    """

    weight_T: Tensor

    def __init__(
        self,
        settings: GrpoSettings,
        policy: Policy,
        averages: Sequence[Average],
        kernel: Kernel,
        micro_batch: int,
        trainable: list[int],
    ) -> None:
        super().__init__(settings, policy, averages, kernel, micro_batch, trainable)
        std_T = kernel.std_T if settings.noise_weights else torch.ones_like(kernel.std_T)
        self.weight_T = noise_weights(std_T, trainable)

    def terms(self, micro: DecisionRows, mean_NZ: Tensor, old: Tensor) -> Terms:
        ratio_NK = (self.log_prob(micro, mean_NZ) - old).exp()
        return Terms(ratio_NK, self.weight_T[micro.step_N].unsqueeze(1), old)
