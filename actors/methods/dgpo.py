"""DGPO, Direct Group Preference Optimization (arXiv 2510.08425): DPO on all images of a prompt at once.

24 deterministic images of a prompt get the same noise at a few noise levels. Each one's flow-matching loss is weighted
by its advantage, and that of all of them by how much the policy still has to learn about this prompt. There is no
stochastic sampler and no likelihood. `actors/learner/objectives/dgpo.py` computes the formula.

Weight sets: the current weights, which are sampled from, and evaluated and saved unless the recipe has learner.ema; and
`old`, a quick moving average, with which the clip compares. The preference and the KL term compare with the base.
Cost of a prompt at T = 10: 240 sampling forwards, 24 images, 96 rows of training. A row costs 5 passes. A prompt whose
known rewards are all equal is not trained on and costs no training. It counts in the denominator.

Images are sampled with guidance, and the velocity for the prompt alone is trained, by default as in the authors' code.
It has two more modes without guidance, one with a guided base and one with `old` as the reference, which are not
offered.

Refuses a learner.micro_batch that is no multiple of the images of a prompt, because the loss of one image depends on
the others. The plan must give images.

Sources: the authors' code (scripts/train_sd3_dgpo.py, config/dgpo.py at 01ceb4b), whose values for PickScore are taken.

Deviations: the code draws 4 of the first 7 of 10 noise levels without replacement, once for all prompts of a step; here
the 7 are split into 4 runs of neighbouring levels, and one of each run is drawn for each prompt. It samples from `old`
instead of the current weights after 200 steps. An image whose latent is not finite is left out of the mean over the
images.
"""

from typing import ClassVar, Literal

from pydantic import Field

from actors.learner.settings import AdvantageSettings, EmaSettings, LeafObjectiveSettings
from actors.learner.weight_sets import WeightSet, quick_average
from actors.methods import Method
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans.settings import SamplesSettings


class DgpoSettings(LeafObjectiveSettings):
    """Direct group preference optimization on all images of each prompt."""

    loss = "actors.learner.objectives.dgpo:Dgpo"
    compares_with_old: ClassVar[bool] = False

    name: Literal["dgpo"] = "dgpo"
    guided: bool = False
    """Whether the trained velocity has classifier-free guidance. If false, only sampling has it."""
    beta: float = Field(10.0, gt=0)
    """β of the preference. The larger it is, the sooner a prompt whose images the policy tells apart counts little."""
    clip_range: float = Field(5e-2, gt=0)
    """How far exp(m_old − m) of an image's loss m may move from 1 before its gradient is cut off."""
    old_rate: float = Field(0.001, ge=0)
    """The old policy keeps min(old_rate · step, old_most) of itself after each optimizer step."""
    old_most: float = Field(0.3, ge=0, lt=1)
    """The most of itself that the old policy keeps after an optimizer step."""
    noise_levels: int = Field(4, ge=1)
    """Number of noise levels for each image. The steps are split into this many runs of neighbouring steps (at most one
    for each step), and one level is drawn from each run."""
    share: float = Field(0.7, gt=0, le=1)
    """The share of the schedule, counted from its start, from which noise levels are drawn."""

    @property
    def compares_with_reference(self) -> bool:
        """The preference compares with the base, also without a KL term."""
        return True

    @property
    def passes(self) -> int:
        """A row costs one more pass, for the old policy."""
        return super().passes + 1

    def compared_images(self, images: int) -> int:
        """All images of a prompt."""
        return images

    def weight_sets(self, ema: EmaSettings | None) -> tuple[WeightSet, ...]:
        """The weight sets, with the old policy."""
        old = quick_average("optimizer_step", self.old_rate, self.old_most, "loss")
        return (*super().weight_sets(ema), old)


METHOD = Method(
    plan=SamplesSettings(seeds=24),
    kernel=FlowSDESettings(),
    advantage=AdvantageSettings(group="prompt", std="batch", epsilon=1e-4),
    objective=DgpoSettings(kl=1e-3),
    micro_batch=24,
)
