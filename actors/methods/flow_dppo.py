"""Flow-DPPO (arXiv 2606.11025): Flow-GRPO with a trust region on the divergence of the policies instead of a clip.

The ratio of one action is a noisy measure of how far the policy has moved. The two policies of a step are Normal
distributions with the same variance, so their KL divergence is known exactly. An action loses its gradient only if this
divergence exceeds a threshold and the action has already moved the way that its advantage asks for.
`actors/learner/objectives/dppo.py` computes the formula. Kernel and advantage rule are those of `flow_grpo`.

Weight sets: the current weights, and an EMA if the recipe has learner.ema.
Cost of a prompt at T = 10: 160 sampling forwards, 16 images, 144 rows of training. Optimizer steps after the first also
store μ_old, one latent for each decision.
Published on SD3.5-M without guidance, with two optimizer steps and δ = 1e-5. These values belong in a recipe.

Before the first optimizer step the divergence is 0. So the threshold acts only with objective.optimizer_steps or
objective.epochs above 1, and with learner.max_staleness. Otherwise the method is Flow-GRPO without a clip.

Sources: the paper's abstract, and the documentation of two implementations (Tencent-Hunyuan/UniRL, FlowDPPO/README.md
and config.yaml; verl-project/verl-omni, docs/algo/flowdppo.md).

Deviations: UniRL trains on 3 steps of the first half, drawn at random; here all steps except the last are trained. With
the CPS kernel, D divides by the variance of the injected noise, as with the other kernels.
"""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from actors.learner.settings import DecisionObjectiveSettings
from actors.methods.flow_grpo import METHOD as FLOW_GRPO
from actors.rollout.plans.settings import ChainSettings


class DppoSettings(DecisionObjectiveSettings):
    """Flow-DPPO: a trust region on the divergence from the policy before the update."""

    loss = "actors.learner.objectives.dppo:FlowDppo"

    name: Literal["flow_dppo"] = "flow_dppo"
    max_divergence: float = Field(1e-5, gt=0)
    """δ. An action may not move further once the divergence, a mean over the latent dimensions, has reached δ."""


METHOD = replace(FLOW_GRPO, plan=ChainSettings(seeds=16), objective=DppoSettings(max_divergence=1e-5))
