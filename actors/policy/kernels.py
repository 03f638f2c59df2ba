"""SDE kernels: how a stochastic step draws its action, and how likely an action was.

Each kernel's mean is linear in the state and the velocity. Shape legend: N rows, K actions, Z the family's latent
dimensions (C, H, W for SD3). σ runs from 1 (noise) to 0 (image); `sigmas` has T+1 values; dt = σ_{i+1} − σ_i < 0.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from actors.policy.settings import CPSSettings, DanceSettings, FlowSDESettings, KernelSettings


def per_row(values_N: Tensor, like_NZ: Tensor) -> Tensor:
    """(N,) to (N, 1, …, 1), so that one value for each row broadcasts over the latent dimensions."""
    return values_N.view(-1, *[1] * (like_NZ.dim() - 1))


def mean_square(difference_NZ: Tensor) -> Tensor:
    """The mean square over the latent dimensions, (N,)."""
    return difference_NZ.square().flatten(1).mean(1)


def squared_distance(action_NKZ: Tensor, mean_NZ: Tensor) -> Tensor:
    """Mean over the latent dimensions of (action − μ)², (N, K)."""
    return (action_NKZ - mean_NZ.unsqueeze(1)).square().flatten(2).mean(2)


class Kernel(ABC):
    """action = μ + s·ε with μ = x·a_i + v·b_i.

    Attributes:
        std_T: s_i, the standard deviation of the noise that step i injects.
        dt_T: σ_{i+1} − σ_i of step i.
    """

    def __init__(self, sigmas: Tensor, std_T: Tensor, x_T: Tensor, v_T: Tensor) -> None:
        """Coefficients in float64, kept in the type of `sigmas`."""
        self.std_T, self._x_T, self._v_T = (values_T.to(sigmas.dtype) for values_T in (std_T, x_T, v_T))
        self.dt_T = sigmas[1:] - sigmas[:-1]

    def mean(self, x_NZ: Tensor, v_NZ: Tensor, step_N: Tensor) -> Tensor:
        """μ, the expected action: (N, Z), in the arithmetic of x and v (fp32)."""
        return x_NZ * per_row(self._x_T[step_N], x_NZ) + v_NZ * per_row(self._v_T[step_N], v_NZ)

    def action(self, mean_NZ: Tensor, noise_NKZ: Tensor, step_N: Tensor) -> Tensor:
        """μ + s·ε, (N, K, Z), in the type of the noise (fp32). The same μ and ε give the same bits in every process."""
        return mean_NZ.unsqueeze(1) + per_row(self.std_T[step_N], noise_NKZ).to(noise_NKZ.dtype) * noise_NKZ

    @abstractmethod
    def log_prob(self, action_NKZ: Tensor, mean_NZ: Tensor, step_N: Tensor) -> Tensor:
        """log p of each action, (N, K): a MEAN over the latent dimensions."""

    @abstractmethod
    def divergence(self, mean_NZ: Tensor, other_NZ: Tensor, step_N: Tensor, with_dt: bool = True) -> Tensor:
        """How far two means are apart in units of `log_prob`, mean over dimensions, (N,)."""


class _Normal(Kernel):
    """A reverse SDE that keeps the flow's marginals, with diffusion g_i.

    μ = x·(1 + g²/(2σ)·dt) + v·(1 + g²(1−σ)/(2σ))·dt; s = g·sqrt(−dt).
    """

    def __init__(self, sigmas: Tensor, g2_T: Tensor) -> None:
        sigma_T = sigmas[:-1].double()
        dt_T = sigmas[1:].double() - sigma_T
        super().__init__(
            sigmas,
            (g2_T * -dt_T).sqrt(),
            1 + g2_T / (2 * sigma_T) * dt_T,
            (1 + g2_T * (1 - sigma_T) / (2 * sigma_T)) * dt_T,
        )

    def log_prob(self, action_NKZ: Tensor, mean_NZ: Tensor, step_N: Tensor) -> Tensor:
        """The Normal log-density."""
        std_N1 = self.std_T[step_N].unsqueeze(1)
        squared_NK = squared_distance(action_NKZ, mean_NZ)
        return -squared_NK / (2 * std_N1.square()) - std_N1.log() - 0.5 * math.log(2 * math.pi)

    def divergence(self, mean_NZ: Tensor, other_NZ: Tensor, step_N: Tensor, with_dt: bool = True) -> Tensor:
        """KL of two Normals of equal std: (μ − μ')² / (2s²), or Flow-GRPO's (μ − μ')² / (2g²), s² = g²·|dt|."""
        kl_N = mean_square(mean_NZ - other_NZ) / (2 * self.std_T[step_N].square())
        return kl_N if with_dt else kl_N * self.dt_T[step_N].abs()


class FlowSDE(_Normal):
    """The SDE of Flow-GRPO (arXiv 2505.05470), used by TempFlow-GRPO (arXiv 2508.04324).

    g_i = a·sqrt(σ_i / (1 − σ̃_i)) with σ̃_i = σ_1 where σ_i = 1.

    Args:
        settings: the noise level a.
        sigmas: (T+1,), descending from 1 to 0.
    """

    def __init__(self, settings: FlowSDESettings, sigmas: Tensor) -> None:
        sigma_T = sigmas[:-1].double()
        below_one_T = torch.where(sigma_T >= 1, sigmas[1].double(), sigma_T)
        super().__init__(sigmas, settings.noise_level**2 * sigma_T / (1 - below_one_T))


class Dance(_Normal):
    """The SDE of DanceGRPO (arXiv 2505.07818): constant g_i = η, so no singularity at σ = 1.

    The paper writes it as μ = x + v·dt − ½η²·score·dt with score = −(x − (1−σ)x̂₀)/σ² and x̂₀ = x − σv.
    """

    def __init__(self, settings: DanceSettings, sigmas: Tensor) -> None:
        super().__init__(sigmas, torch.full_like(sigmas[:-1], settings.noise_level**2, dtype=torch.float64))


class CPS(Kernel):
    """Coefficient-preserving sampling (arXiv 2509.05952), used by Flow-GRPO-Fast.

    s = σ_{i+1}·sin(aπ/2); μ = (1 − σ_{i+1})·x̂₀ + σ_{i+1}·cos(aπ/2)·x̂₁ with x̂₀ = x − σv and x̂₁ = x + (1 − σ)v.

    Its published log p is a surrogate, −mean (action − μ)². It is not a density and has no variance. Its gradient
    already scales with s, so noise weights would apply s twice.
    """

    def __init__(self, settings: CPSSettings, sigmas: Tensor) -> None:
        sigma_T, next_T = sigmas[:-1].double(), sigmas[1:].double()
        angle = settings.noise_level * math.pi / 2
        noise_T = next_T * math.cos(angle)
        super().__init__(
            sigmas,
            next_T * math.sin(angle),
            (1 - next_T) + noise_T,
            noise_T * (1 - sigma_T) - (1 - next_T) * sigma_T,
        )

    def log_prob(self, action_NKZ: Tensor, mean_NZ: Tensor, step_N: Tensor) -> Tensor:
        """−mean (action − μ)²."""
        return -squared_distance(action_NKZ, mean_NZ)

    def divergence(self, mean_NZ: Tensor, other_NZ: Tensor, step_N: Tensor, with_dt: bool = True) -> Tensor:
        """mean (μ − μ')², whatever `with_dt` is: so much lower is the surrogate of an action at μ under the mean μ'."""
        return mean_square(mean_NZ - other_NZ)


def make_kernel(settings: KernelSettings, sigmas: Tensor) -> Kernel:
    """The kernel of a recipe on a schedule."""
    match settings:
        case FlowSDESettings():
            return FlowSDE(settings, sigmas)
        case DanceSettings():
            return Dance(settings, sigmas)
        case CPSSettings():
            return CPS(settings, sigmas)


def noise_weights(std_T: Tensor, trained: list[int]) -> Tensor:
    """w_i = s_i / mean of s over the trained steps: (T,), zero on steps that are not trained.

    TempFlow-GRPO, noise-aware weighting. The authors' hard-coded constants (2.25 for SD3.5-M, 1.73 for FLUX,
    1.53 for Qwen-Image) are 1/mean(s) of their own schedules; here it follows from the schedule in use.
    """
    weight_T = torch.zeros_like(std_T)
    weight_T[trained] = std_T[trained] / std_T[trained].mean()
    return weight_T
