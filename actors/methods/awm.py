"""AWM, Advantage Weighted Matching (arXiv 2509.25050): flow matching on finished images, weighted by their advantages.

24 deterministic images of a prompt are noised to a few levels. The flow-matching loss there stands for −log p, in a
clipped surrogate; two more terms hold the velocity to the base (β) and to a moving average of the policy. The formula
is computed in `actors/learner/objectives/awm.py`.

Weight sets: the current weights, and the EMA of learner.ema, which the loss compares with and which is evaluated and
saved.
Cost of a prompt at T = 14: 336 sampling forwards, 24 images, 144 rows of training; a row costs 3 passes, one more for
each of the two terms that is on.

Refuses ema_weight without learner.ema: there is no average to hold to. Its plan has to give images.

Deviations: the code keeps an average of its own for the loss, of decay min(.001·step, .3), beside the one of decay .99
that is evaluated; here both are one.
"""

from typing import Literal

from pydantic import Field

from actors.learner.settings import AdvantageSettings, EmaSettings, LeafObjectiveSettings, LearnerSettings
from actors.learner.weight_sets import WeightSet
from actors.methods import Method
from actors.policy.settings import FlowSDESettings, KernelSettings
from actors.rollout.plans.settings import SamplesSettings


class AwmSettings(LeafObjectiveSettings):
    """Advantage-weighted flow matching on finished images."""

    loss = "actors.learner.objectives.awm:Awm"

    name: Literal["awm"] = "awm"
    clip_range: float = Field(1.0, gt=0)
    power: float = Field(0.25, gt=0)
    """p of the generalised Huber loss; 1 is the squared error."""
    ema_weight: float = Field(1.0, ge=0)
    """Weight of the term that holds the policy to its own moving average (learner.ema)."""

    @property
    def passes(self) -> int:
        """A row costs one more where the loss compares with the moving average."""
        return super().passes + bool(self.ema_weight)

    def weight_sets(self, ema: EmaSettings | None) -> tuple[WeightSet, ...]:
        """The loss compares with the EMA too."""
        if ema and self.ema_weight:
            return (ema.weight_set("loss"),)
        return super().weight_sets(ema)

    def check(self, kernel: KernelSettings, learner: LearnerSettings, prompts_per_step: int) -> None:
        """Refuses a weight for a moving average that the recipe does not have."""
        super().check(kernel, learner, prompts_per_step)
        if self.ema_weight and not learner.ema:
            raise ValueError("objective.ema_weight: there is no moving average; set learner.ema, or the weight to 0")


METHOD = Method(
    plan=SamplesSettings(seeds=24),
    kernel=FlowSDESettings(),
    advantage=AdvantageSettings(group="prompt", std="batch", epsilon=1e-4),
    objective=AwmSettings(kl=1e-4),
    ema=EmaSettings(decay=0.9, every=1),
)
