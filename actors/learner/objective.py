"""The clipped GRPO objective on decisions.

Shape legend: N decisions, K actions, Z latent dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """Terms of the loss, before any sum over decisions."""

    policy_NK: Tensor
    """max(−A·ρ, −A·clip(ρ)), weighted."""
    ratio_NK: Tensor
    clipped_NK: Tensor
    """Whether the clip cuts the gradient."""


def grpo(log_prob_NK: Tensor, old_NK: Tensor, advantage_NK: Tensor, weight_N: Tensor, clip_range: float) -> Surrogate:
    """w_i · max(−A·ρ, −A·clip(ρ, 1 ± c)) with ρ = exp(log p − log p_old).

    PPO's clipped surrogate as used by Flow-GRPO (arXiv 2505.05470) and, with w_i = s_i / mean(s), TempFlow-GRPO
    (arXiv 2508.04324). The log-probs are means over latent dimensions, so ρ is a trust-region heuristic.

    Deviation: the reference drops groups with no spread from the batch; here they keep their place in the
    denominator with advantage 0, so that the update does not depend on how many there are.
    """
    ratio_NK = (log_prob_NK - old_NK).exp()
    plain_NK = -advantage_NK * ratio_NK
    clipped_NK = -advantage_NK * ratio_NK.clamp(1 - clip_range, 1 + clip_range)
    return Surrogate(
        weight_N.unsqueeze(1) * torch.maximum(plain_NK, clipped_NK),
        ratio_NK.detach(),
        (clipped_NK > plain_NK).detach(),
    )
