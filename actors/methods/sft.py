"""Online SFT: supervised fine-tuning on the best image of each prompt, a baseline of Flow-GRPO (arXiv 2505.05470).

The old policy, a copy of the trained weights that is made anew now and then, makes 24 deterministic images of a prompt.
The flow-matching loss is trained on the best one, noised to 39 noise levels. The rewards only choose the image.
`actors/learner/objectives/sft.py` computes the formula.

Weight sets: the current weights, which are evaluated and saved unless the recipe has learner.ema; and `old`, from which
images are sampled. With objective.old_every: null images are sampled from the current weights.
Cost of a prompt at T = 40: 960 sampling forwards, 24 images, 39 rows of training. A row costs 3 passes, or 4 with β. A
prompt whose known rewards are all equal, or that has fewer than two, is not trained on; it counts in the denominator.

Refuses nothing of its own. The plan must give images.

Source: flow_grpo (scripts/train_sd3_sft.py, config/sft.py), which copies the trained weights to the policy that is
sampled from after every 40 optimizer steps (its OnlineSFT; as published in its file, 10 million steps, the images are
always those of the base). It calls the weight of an image its advantage: 1 for the best one and 0 for the others.

Deviations: flow_grpo computes all 24 images, also those of weight 0, and divides by their number, so its gradient is a
24th of this one. Of several best images it trains on all, also where all rewards of a prompt are equal; here on the
first one, and on none where all are equal, so that the cost of a prompt is known. It draws the noise levels
independently and from a logit-normal distribution over 1000 steps of the schedule; here they are one from each run of
neighbouring sampling steps, evenly. It samples with guidance and trains without; here sampling and training have the
same guidance, and the recipe has none.
"""

from typing import ClassVar, Literal

from pydantic import Field

from actors.learner.settings import AdvantageSettings, EmaSettings, LeafObjectiveSettings
from actors.learner.weight_sets import WeightSet, old_policy
from actors.methods import Method
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans.settings import SamplesSettings


class SftSettings(LeafObjectiveSettings):
    """Flow matching on the best image of each prompt."""

    loss = "actors.learner.objectives.sft:Sft"
    compares_with_old: ClassVar[bool] = False

    name: Literal["sft"] = "sft"
    old_every: int | None = Field(40, ge=1)
    """Number of optimizer steps after which the old policy becomes a copy of the trained weights. Images are sampled
    from the old policy. If null, they are sampled from the current policy."""

    def trained_images(self, images: int) -> int:
        """The best image."""
        return 1

    def weight_sets(self, ema: EmaSettings | None) -> tuple[WeightSet, ...]:
        """The weight sets, with the old policy if there is one."""
        old = (old_policy(self.old_every, "sampling"),) if self.old_every else ()
        return (*super().weight_sets(ema), *old)


METHOD = Method(
    plan=SamplesSettings(seeds=24),
    kernel=FlowSDESettings(),
    # Advantages only put the images in order. No clip may make two of them equal: |A| is √(seeds − 1) at most.
    advantage=AdvantageSettings(group="prompt", std="group", clip=100.0),
    objective=SftSettings(noise_levels=39, share=1.0),
)
