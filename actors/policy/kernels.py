"""SDE kernels: how a stochastic step draws its action, and how likely an action was.

Shape legend: N rows, K actions, Z the family's latent dimensions (C, H, W for SD3).
σ runs from 1 (noise) to 0 (image); `sigmas` has T+1 values; dt = σ_{i+1} − σ_i < 0.
"""

import math

import torch
from torch import Tensor

from actors.policy.settings import FlowSDESettings


def per_row(values_N: Tensor, like_NZ: Tensor) -> Tensor:
    """(N,) to (N, 1, …, 1), so that a value a row broadcasts over the latent dimensions."""
    return values_N.view(-1, *[1] * (like_NZ.dim() - 1))


def ode_step(x_NZ: Tensor, v_NZ: Tensor, sigmas: Tensor, i: int) -> Tensor:
    """x' = x + v·dt, the deterministic step from σ_i to σ_{i+1}, in fp32."""
    return x_NZ + v_NZ * (sigmas[i + 1] - sigmas[i])


class FlowSDE:
    """The marginal-preserving SDE of Flow-GRPO (arXiv 2505.05470), used by TempFlow-GRPO (arXiv 2508.04324).

    g_i = a·sqrt(σ_i / (1 − σ̃_i)) with σ̃_i = σ_1 where σ_i = 1; s_i = g_i·sqrt(−dt);
    μ_i = x·(1 + g²/(2σ)·dt) + v·(1 + g²(1−σ)/(2σ))·dt; action = μ + s·ε.

    Args:
        settings: the noise level a.
        sigmas: (T+1,), descending from 1 to 0.
    """

    def __init__(self, settings: FlowSDESettings, sigmas: Tensor) -> None:
        sigma_T = sigmas[:-1].double()
        dt_T = sigmas[1:].double() - sigma_T
        below_one_T = torch.where(sigma_T >= 1, sigmas[1].double(), sigma_T)
        g2_T = settings.noise_level**2 * sigma_T / (1 - below_one_T)
        self.std_T = (g2_T * -dt_T).sqrt().to(sigmas.dtype)
        """s_i, the standard deviation of the injected noise a step."""
        self._x_T = (1 + g2_T / (2 * sigma_T) * dt_T).to(sigmas.dtype)
        self._v_T = ((1 + g2_T * (1 - sigma_T) / (2 * sigma_T)) * dt_T).to(sigmas.dtype)

    def mean(self, x_NZ: Tensor, v_NZ: Tensor, step_N: Tensor) -> Tensor:
        """μ, the expected action: (N, Z), in the arithmetic of x and v (fp32)."""
        return x_NZ * per_row(self._x_T[step_N], x_NZ) + v_NZ * per_row(self._v_T[step_N], v_NZ)

    def log_prob(self, action_NKZ: Tensor, mean_NZ: Tensor, step_N: Tensor) -> Tensor:
        """log p of each action, (N, K): the MEAN over the latent dimensions of the Normal log-density."""
        std_N1 = self.std_T[step_N].unsqueeze(1)
        squared_NK = (action_NKZ - mean_NZ.unsqueeze(1)).square().flatten(2).mean(2)
        return -squared_NK / (2 * std_N1.square()) - std_N1.log() - 0.5 * math.log(2 * math.pi)

    def divergence(self, mean_NZ: Tensor, reference_NZ: Tensor, step_N: Tensor) -> Tensor:
        """KL of two Normals of equal std, mean over dimensions: (μ − μ_ref)² / (2s²), (N,)."""
        return (mean_NZ - reference_NZ).square().flatten(1).mean(1) / (2 * self.std_T[step_N].square())


def noise_weights(std_T: Tensor, trained: list[int]) -> Tensor:
    """w_i = s_i / mean of s over the trained steps: (T,), zero on steps that are not trained.

    TempFlow-GRPO, noise-aware weighting. The authors' hard-coded constants (2.25 for SD3.5-M, 1.73 for FLUX,
    1.53 for Qwen-Image) are 1/mean(s) of their own schedules; here it follows from the schedule in use.
    """
    weight_T = torch.zeros_like(std_T)
    weight_T[trained] = std_T[trained] / std_T[trained].mean()
    return weight_T
