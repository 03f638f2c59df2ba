"""GRPO-Guard (arXiv 2510.22319): Flow-GRPO with normalised ratios, so that a clip range is comparable at all steps.

ρ = exp{(log p − log p_old + mean (μ − μ_old)² / (2s²)) · s}, and the loss of a step is divided by |dt|.
`actors/learner/objectives/guard.py` computes the formula. Plan, kernel and advantage rule are those of `flow_grpo`.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt: as `flow_grpo`. Later minibatches also store μ_old, one latent for each decision.

Refuses the CPS kernel, because its log p is not a density and cannot be normalised.
"""

from dataclasses import replace
from typing import Literal

from actors.learner.settings import ClippedSettings, LearnerSettings
from actors.methods.flow_grpo import METHOD as FLOW_GRPO
from actors.policy.settings import CPSSettings, KernelSettings


class GuardSettings(ClippedSettings):
    """GRPO-Guard: ratios are normalised, and steps are weighted by 1 / |dt|."""

    loss = "actors.learner.objectives.guard:GrpoGuard"

    name: Literal["grpo_guard"] = "grpo_guard"

    def check(self, kernel: KernelSettings, learner: LearnerSettings, prompts_per_step: int) -> None:
        """Refuse a kernel whose actions have no Normal density."""
        super().check(kernel, learner, prompts_per_step)
        if isinstance(kernel, CPSSettings):
            raise ValueError(
                "objective.name: grpo_guard normalises a Normal log-density, but the CPS kernel has none; "
                "set kernel.name to flow_sde or dance"
            )


METHOD = replace(FLOW_GRPO, objective=GuardSettings(clip_range=1e-4, kl=0.01, kl_dt=False))
