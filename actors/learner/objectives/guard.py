"""GRPO-Guard. Shape legend: N decisions, K actions, Z latent dimensions."""

from torch import Tensor

from actors.learner.objectives.decisions import DecisionObjective, DecisionRows, Surrogate
from actors.learner.objectives.objective import clipped_surrogate
from actors.methods.grpo_guard import GuardSettings


class GrpoGuard(DecisionObjective):
    """max(−A·ρ, −A·clip(ρ, 1 ± c)) / |dt| with ρ = exp{(log p − log p_old + mean (μ − μ_old)² / (2s²)) · s}.

    log p − log p_old has the mean −(μ − μ_old)²/(2s²) over actions drawn around μ_old and a spread of ‖μ − μ_old‖/s.
    The added term removes this mean, and the factor s this spread, so a clip range means the same at every step.
    Division by |dt| then evens out the gradients of the steps. β·KL is the kernel's.
    """

    settings: GuardSettings

    def old_from(self, micro: DecisionRows, mean_NZ: Tensor) -> Tensor:
        """μ, (N, Z)."""
        return mean_NZ

    def surrogate(self, micro: DecisionRows, mean_NZ: Tensor, old: Tensor) -> Surrogate:
        old_NK = self.log_prob(micro, old)
        shift_N1 = self.kernel.divergence(mean_NZ, old, micro.step_N).unsqueeze(1)
        std_N1, dt_N1 = (values_T[micro.step_N].unsqueeze(1) for values_T in (self.kernel.std_T, self.kernel.dt_T))
        ratio_NK = ((self.log_prob(micro, mean_NZ) - old_NK + shift_N1) * std_N1).exp()
        clipped = clipped_surrogate(ratio_NK, micro.advantage_NK, self.settings.clip_range)
        return Surrogate(ratio_NK, *clipped, 1 / dt_N1.abs(), old_NK)
