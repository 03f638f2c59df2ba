"""Online DPO: Diffusion-DPO (arXiv 2311.12908) on pairs that are made during training, as in flow_grpo.

A copy of the trained weights, which is made anew now and then, samples 24 deterministic images of a prompt. The best
one and the worst one are a pair. Both get the same noise at the same noise levels. The loss asks that the trained
velocity gain more on the copy's for the best image than for the worst. The rewards only choose the pair. Images are
sampled with guidance, and the velocity for the prompt alone is trained. `actors/learner/objectives/dpo.py` computes the
formula.

Weight sets: the current weights, which are evaluated and saved unless the recipe has learner.ema; and `copy`, from
which images are sampled and with which the loss compares. With objective.copy_every: null there is no copy: images are
sampled from the current weights, and the loss compares with the base.
Cost of a prompt at T = 40: 960 sampling forwards, 24 images, 78 rows of training. A row costs 4 passes. A prompt whose
known rewards are all equal, or that has fewer than two, has no pair and costs no training. It counts in the
denominator.

Refuses an odd learner.micro_batch, because a pair must be in one micro-batch; and objective.kl, because β already holds
the policy close to the one that it compares with. The plan must give images.

Sources: flow_grpo (scripts/train_sd3_dpo.py, config/dpo.py) and Flow-Factory (trainers/dpo.py, examples/dpo). In both,
as in the code of Diffusion-DPO, errors are means over the latent dimensions, where the paper writes squared norms. β is
100 in both recipes for SD3.5. flow_grpo samples from the policy that it compares with, and its OnlineDPO copies the
trained weights to it after every 40 optimizer steps; its file has 10 million, so that all pairs are those of the base.
Flow-Factory samples from the current policy and compares with the base.

Deviations: flow_grpo draws 39 noise levels for each pair, independently and from a logit-normal distribution over the
1000 steps of the training schedule; Flow-Factory's recipe draws one. Here they are points of the sampling schedule, one
from each run of neighbouring steps. Where all rewards of a prompt are equal, flow_grpo takes its first two images as a
pair, and Flow-Factory an image and itself; here there is no pair. Of equally good images the first one is taken.
"""

from typing import ClassVar, Literal

from pydantic import Field

from actors.learner.settings import AdvantageSettings, EmaSettings, LeafObjectiveSettings, LearnerSettings
from actors.learner.weight_sets import WeightSet, copied
from actors.methods import Method
from actors.policy.settings import FlowSDESettings, KernelSettings
from actors.rollout.plans.settings import SamplesSettings


class DpoSettings(LeafObjectiveSettings):
    """Diffusion-DPO on the best and the worst image of each prompt."""

    loss = "actors.learner.objectives.dpo:Dpo"
    compares_with_old: ClassVar[bool] = False

    name: Literal["dpo"] = "dpo"
    guided: bool = False
    """Whether the trained velocity has classifier-free guidance. If false, only sampling has it."""
    beta: float = Field(100.0, gt=0)
    """β. The larger it is, the closer the policy stays to the one that the loss compares with."""
    copy_every: int | None = Field(40, ge=1)
    """Number of optimizer steps after which the trained weights are copied again. Images are sampled from the copy, and
    the loss compares with it. If null, images are sampled from the current weights, and the loss compares with the
    base."""

    @property
    def compares_with_reference(self) -> bool:
        """The loss compares with the base if there is no copy."""
        return self.copy_every is None

    @property
    def passes(self) -> int:
        """A row costs one more pass if the loss compares with the copy."""
        return super().passes + (self.copy_every is not None)

    def trained_images(self, images: int) -> int:
        """Only the best image and the worst one are trained on."""
        return 2

    def compared_images(self, images: int) -> int:
        """A pair."""
        return 2

    def weight_sets(self, ema: EmaSettings | None) -> tuple[WeightSet, ...]:
        """The weight sets, with the copy if there is one."""
        copy = (copied(self.copy_every, "sampling", "loss"),) if self.copy_every else ()
        return (*super().weight_sets(ema), *copy)

    def check(self, kernel: KernelSettings, learner: LearnerSettings, prompts_per_step: int) -> None:
        """Refuse a KL term."""
        super().check(kernel, learner, prompts_per_step)
        if self.kl:
            raise ValueError(
                "objective.kl: DPO already holds the policy close to the one that it compares with; raise "
                "objective.beta, and set objective.kl to 0"
            )


METHOD = Method(
    plan=SamplesSettings(seeds=24),
    kernel=FlowSDESettings(),
    # Advantages only put the images in order. No clip may make two of them equal: |A| is √(seeds − 1) at most.
    advantage=AdvantageSettings(group="prompt", std="group", clip=100.0),
    objective=DpoSettings(noise_levels=39, share=1.0),
)
