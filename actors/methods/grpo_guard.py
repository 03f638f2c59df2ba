"""GRPO-Guard (arXiv 2510.22319): Flow-GRPO whose ratios are normalised, so that a clip range means the same everywhere.

ρ = exp{(log p − log p_old + mean (μ − μ_old)² / (2s²)) · s}, and the loss of a step is divided by |dt|. The formula is
computed in `actors/learner/objectives/guard.py`; plan, kernel and advantage rule are those of `flow_grpo`.

Weight sets: the current weights, and an EMA where the recipe has learner.ema.
Cost of a prompt: that of `flow_grpo`. Later minibatches keep μ_old, a latent for each decision.

Refuses the CPS kernel, whose log p is no density: there is nothing to normalise.
"""

from dataclasses import replace
from typing import Literal

from actors.learner.settings import DecisionObjectiveSettings, LearnerSettings
from actors.methods.flow_grpo import METHOD as FLOW_GRPO
from actors.policy.settings import CPSSettings, KernelSettings


class GuardSettings(DecisionObjectiveSettings):
    """GRPO-Guard: normalised ratios, and steps weighted by 1 / |dt|."""

    loss = "actors.learner.objectives.guard:GrpoGuard"

    name: Literal["grpo_guard"] = "grpo_guard"

    def check(self, kernel: KernelSettings, learner: LearnerSettings, prompts_per_step: int) -> None:
        """Refuses a kernel whose actions have no Normal density."""
        super().check(kernel, learner, prompts_per_step)
        if isinstance(kernel, CPSSettings):
            raise ValueError(
                "objective.name: grpo_guard normalises a Normal log-density, and the CPS kernel has none; "
                "set kernel.name to flow_sde or dance"
            )


METHOD = replace(FLOW_GRPO, objective=GuardSettings(clip_range=1e-4, kl=0.01, kl_dt=False))
