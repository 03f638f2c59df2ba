"""GRPO-Guard. Shape legend: N decisions, K actions, Z latent dimensions."""

from collections.abc import Mapping

from torch import Tensor

from actors.learner.averages import Average
from actors.learner.objectives.decisions import DecisionRows, OnDecisions
from actors.learner.objectives.objective import clipped_surrogate
from actors.learner.settings import GuardSettings
from actors.policy.kernels import Kernel
from actors.policy.policy import Policy


class GrpoGuard(OnDecisions):
    """max(−A·ρ, −A·clip(ρ, 1 ± c)) / |dt| with ρ = exp{(log p − log p_old + mean (μ − μ_old)² / (2s²)) · s}.

    GRPO-Guard (arXiv 2510.22319). log p − log p_old has the mean −(μ − μ_old)²/(2s²) over actions drawn around μ_old
    and a spread of ‖μ − μ_old‖/s: the added term takes out the first, the factor s the second, so that a clip range
    means the same at each step. Division by |dt| then evens out the gradients of the steps. β·KL is the kernel's.
    """

    def __init__(
        self,
        settings: GuardSettings,
        policy: Policy,
        averages: Mapping[str, Average],
        kernel: Kernel,
        micro_batch: int,
    ) -> None:
        super().__init__(policy, averages, kernel, micro_batch, settings.kl)
        self.settings = settings

    def terms(
        self, micro: DecisionRows, mean_NZ: Tensor, old_NZ: Tensor, old_NK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_prob_NK = self.kernel.log_prob(micro.action_NKZ, mean_NZ, micro.step_N)
        shift_N1 = self.kernel.divergence(mean_NZ, old_NZ, micro.step_N).unsqueeze(1)
        std_N1, dt_N1 = (values_T[micro.step_N].unsqueeze(1) for values_T in (self.kernel.std_T, self.kernel.dt_T))
        ratio_NK = ((log_prob_NK - old_NK + shift_N1) * std_N1).exp()
        loss_NK, clipped_NK = clipped_surrogate(ratio_NK, micro.advantage_NK, self.settings.clip_range)
        return loss_NK / dt_N1.abs(), ratio_NK, clipped_NK
