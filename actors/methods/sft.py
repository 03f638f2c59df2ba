"""Online SFT: supervised fine-tuning on the best image of each prompt, a baseline of Flow-GRPO (arXiv 2505.05470).

A copy of the trained weights, which is made anew now and then, samples 24 deterministic images of a prompt. The
flow-matching loss is trained on the best one at 39 noise levels. The rewards only choose the image. Images are sampled
with guidance, and the velocity for the prompt alone is trained.
`actors/learner/objectives/sft.py` computes the formula.

Weight sets: the current weights, which are evaluated and saved unless the recipe has learner.ema; and `copy`, from
which images are sampled. With objective.copy_every: null there is no copy: images are sampled from the current weights.
Cost of a prompt at T = 40: 960 sampling forwards, 24 images, 39 rows of training. A row costs 3 passes, or 4 with β. A
prompt whose known rewards are all equal, or that has fewer than two, is not trained on and costs no training. It counts
in the denominator.

Refuses nothing of its own. The plan must give images.

Source: flow_grpo (scripts/train_sd3_sft.py, config/sft.py). Its OnlineSFT copies the trained weights to the policy that
is sampled from after every 40 optimizer steps; its file has 10 million, so that all images are those of the base. It
weights an image by what it calls its advantage, which is 1 for the best one and 0 for the others.

Deviations: flow_grpo computes all 24 images and divides by their number, so that its gradient is a 24th of this one,
before clipping. It trains on each of several best images, also where all rewards of a prompt are equal; here on the
first of them, and on none where all are equal. It draws noise levels independently and from a logit-normal distribution
over the 1000 steps of the training schedule; here they are points of the sampling schedule, one from each run of
neighbouring steps.
"""

from typing import ClassVar, Literal

from pydantic import Field

from actors.learner.settings import AdvantageSettings, EmaSettings, LeafObjectiveSettings
from actors.learner.weight_sets import WeightSet, copied
from actors.methods import Method
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans.settings import SamplesSettings


class SftSettings(LeafObjectiveSettings):
    """Flow matching on the best image of each prompt."""

    loss = "actors.learner.objectives.sft:Sft"
    compares_with_old: ClassVar[bool] = False

    name: Literal["sft"] = "sft"
    guided: bool = False
    """Whether the trained velocity has classifier-free guidance. If false, only sampling has it."""
    copy_every: int | None = Field(40, ge=1)
    """Number of optimizer steps after which the trained weights are copied again. Images are sampled from the copy. If
    null, they are sampled from the current weights."""

    def trained_images(self, images: int) -> int:
        """Only the best image is trained on."""
        return 1

    def weight_sets(self, ema: EmaSettings | None) -> tuple[WeightSet, ...]:
        """The weight sets, with the copy if there is one."""
        copy = (copied(self.copy_every, "sampling"),) if self.copy_every else ()
        return (*super().weight_sets(ema), *copy)


METHOD = Method(
    plan=SamplesSettings(seeds=24),
    kernel=FlowSDESettings(),
    # Advantages only put the images in order. No clip may make two of them equal: |A| is √(seeds − 1) at most.
    advantage=AdvantageSettings(group="prompt", std="group", clip=100.0),
    objective=SftSettings(noise_levels=39, share=1.0),
)
