"""DiffusionNFT (arXiv 2509.16117): trains an implicit positive and an implicit negative policy on finished images.

The old policy, a slowly updated copy, makes 24 deterministic images of a prompt. Its velocity and the trained velocity
define two implicit policies: one should make the images with high reward, the other those with low reward. There is no
ratio, so nothing is clipped. `actors/learner/objectives/nft.py` computes the formula.

Weight sets: the current weights, which are evaluated and saved unless the recipe has learner.ema; and `old`, the slow
copy. Images are sampled from `old`, the loss compares with it, and it is updated after each training step.
Cost of a prompt at T = 10: 240 sampling forwards, 24 images, 216 rows of training. A row costs 4 passes, or 5 with β.

Refuses max_staleness, because the loss compares with the present old policy, not with the one that made an image. The
plan must give images.
"""

from typing import ClassVar, Literal

from pydantic import Field

from actors.learner.settings import AdvantageSettings, EmaSettings, LeafObjectiveSettings, LearnerSettings
from actors.learner.weight_sets import WeightSet, quick_average
from actors.methods import Method
from actors.policy.settings import FlowSDESettings, KernelSettings
from actors.rollout.plans.settings import SamplesSettings


class NftSettings(LeafObjectiveSettings):
    """DiffusionNFT: implicit positive and negative policies, trained on images of a slowly updated copy."""

    loss = "actors.learner.objectives.nft:Nft"
    compares_with_old: ClassVar[bool] = False

    name: Literal["nft"] = "nft"
    beta: float = Field(1.0, gt=0)
    """The distance of the implicit policies from the old policy."""
    scale: float = Field(5.0, gt=0)
    """A factor on the policy's loss."""
    advantage_clip: float = Field(5.0, gt=0)
    """The advantage A becomes the weight r = clip(A / (2 · advantage_clip) + ½, 0, 1)."""
    old_rate: float = Field(0.001, ge=0)
    """The old policy keeps min(old_rate · step, old_most) of itself after each training step."""
    old_most: float = Field(0.5, ge=0, lt=1)
    """The most of itself that the old policy keeps after a training step."""
    noise_levels: int = Field(9, ge=1)
    """Number of noise levels for each image. The steps are split into this many runs of neighbouring steps (at most one
    for each step), and one level is drawn from each run."""

    @property
    def passes(self) -> int:
        """A row costs one more pass, for the old policy."""
        return super().passes + 1

    def weight_sets(self, ema: EmaSettings | None) -> tuple[WeightSet, ...]:
        """The weight sets, with the old policy, which does not change during an update."""
        old = quick_average("training_step", self.old_rate, self.old_most, "sampling", "loss")
        return (*super().weight_sets(ema), old)

    def check(self, kernel: KernelSettings, learner: LearnerSettings, prompts_per_step: int) -> None:
        """Refuse experience from earlier policy versions."""
        super().check(kernel, learner, prompts_per_step)
        if learner.max_staleness:
            raise ValueError(
                "learner.max_staleness: DiffusionNFT compares with the present old policy, which must be the one that "
                "made the images; set max_staleness to 0"
            )


METHOD = Method(
    plan=SamplesSettings(seeds=24),
    kernel=FlowSDESettings(),
    advantage=AdvantageSettings(group="prompt", std="batch", epsilon=1e-4),
    objective=NftSettings(kl=1e-4),
)
