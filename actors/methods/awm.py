"""AWM, Advantage Weighted Matching (arXiv 2509.25050): flow matching on finished images, weighted by their advantages.

24 deterministic images of a prompt are noised to a few noise levels. The flow-matching loss at these levels takes the
place of −log p in a clipped surrogate. Two more terms keep the velocity near the base (β) and near a moving average of
the policy. `actors/learner/objectives/awm.py` computes the formula.

Weight sets: the current weights, and the moving average of learner.ema. The loss compares with the average, and the
average is evaluated and saved.
Cost of a prompt at T = 14: 336 sampling forwards, 24 images, 144 rows of training. A row costs 3 passes, and one more
for each of the two terms that is used.

Refuses ema_weight without learner.ema, because there is no average to compare with. The plan must give images.

Deviations: the code has two averages, one for the loss with decay min(.001·step, .3), and one that is evaluated with
decay .99. Here one average is used for both.
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
    """How far a ratio may move from 1 before its gradient is cut off."""
    power: float = Field(0.25, gt=0)
    """The exponent p of the generalised Huber loss. 1 is the squared error."""
    ema_weight: float = Field(1.0, ge=0)
    """The weight of the term that keeps the policy near its own moving average (learner.ema)."""

    @property
    def passes(self) -> int:
        """A row costs one more pass if the loss compares with the moving average."""
        return super().passes + bool(self.ema_weight)

    def weight_sets(self, ema: EmaSettings | None) -> tuple[WeightSet, ...]:
        """The weight sets. The loss also uses the moving average if `ema_weight` is not 0."""
        if ema and self.ema_weight:
            return (ema.weight_set("loss"),)
        return super().weight_sets(ema)

    def check(self, kernel: KernelSettings, learner: LearnerSettings, prompts_per_step: int) -> None:
        """Refuse `ema_weight` if the recipe has no moving average."""
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
