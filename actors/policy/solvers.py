"""Deterministic steps of the flow from σ to σ': Euler, and DPM-Solver++ of second order.

Shape legend: R rows, Z latent dimensions. σs are 0-dimensional tensors.
"""

import torch
from torch import Tensor


def euler(x_RZ: Tensor, v_RZ: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """x' = x + v·(σ' − σ), in fp32."""
    return x_RZ + v_RZ * (following - sigma)


def dpm_solver_2m(
    x_RZ: Tensor, x0_RZ: Tensor, before_RZ: Tensor, sigma: Tensor, following: Tensor, before: Tensor
) -> Tensor:
    """One multistep step of DPM-Solver++(2M) (arXiv 2211.01095) for a rectified flow, α = 1 − σ.

    With λ = ln(α/σ), h = λ' − λ and r = (λ − λ_before)/h: x' = (σ'/σ)·x − α'(e^{−h} − 1)·(x̂₀ + (x̂₀ − x̂₀_before)/(2r)).
    Its steps of first order, and those to σ' = 0, are Euler's.

    Args:
        x0_RZ: x̂₀ = x − σv at σ.
        before_RZ, before: x̂₀ and σ of the step before, 1 > σ_before > σ > σ' > 0.
    """
    lambda_, lambda_next, lambda_before = ((1 - s).log() - s.log() for s in (sigma, following, before))
    h = lambda_next - lambda_
    blended_RZ = x0_RZ + (x0_RZ - before_RZ) * (h / (2 * (lambda_ - lambda_before)))
    return x_RZ * (following / sigma) - blended_RZ * ((1 - following) * torch.expm1(-h))
