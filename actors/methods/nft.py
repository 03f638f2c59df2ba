"""DiffusionNFT (arXiv 2509.16117): images of a slow copy of the policy, implicit positive and negative policies.

24 deterministic images of a prompt come from the old policy, a slow copy. Its velocity and the trained one span two
implicit policies: images of high reward should have come from the one, images of low reward from the other. There is
no ratio, hence nothing is clipped. The formula is computed in `actors/learner/objectives/nft.py`.

Weight sets: the current weights, which are evaluated and saved unless the recipe has learner.ema; and `old`, the slow
copy, which is sampled from and which the loss compares with. It follows after each training step.
Cost of a prompt at T = 10: 240 sampling forwards, 24 images, 216 rows of training; a row costs 4 passes, 5 with β.

Refuses max_staleness: the loss compares with the old policy as it is now, not as it was when an image was made. Its
plan has to give images.
"""

from typing import ClassVar, Literal

from pydantic import Field

from actors.learner.settings import AdvantageSettings, EmaSettings, LeafObjectiveSettings, LearnerSettings
from actors.learner.weight_sets import WeightSet
from actors.methods import Method
from actors.policy.settings import FlowSDESettings, KernelSettings
from actors.rollout.plans.settings import SamplesSettings


class NftSettings(LeafObjectiveSettings):
    """DiffusionNFT: implicit positive and negative policies, on images sampled from an older one."""

    loss = "actors.learner.objectives.nft:Nft"
    compares_with_old: ClassVar[bool] = False

    name: Literal["nft"] = "nft"
    beta: float = Field(1.0, gt=0)
    """How far the implicit policies lie from the old one."""
    scale: float = Field(5.0, gt=0)
    """Factor of the policy's loss."""
    advantage_clip: float = Field(5.0, gt=0)
    """r = clip(A / (2 · advantage_clip) + ½, 0, 1)."""
    old_rate: float = Field(0.001, ge=0)
    """The old policy keeps min(old_rate · step, old_most) of itself after each training step."""
    old_most: float = Field(0.5, ge=0, lt=1)
    noise_levels: int = Field(9, ge=1)

    @property
    def passes(self) -> int:
        """A row costs one more, for the old policy."""
        return super().passes + 1

    def weight_sets(self, ema: EmaSettings | None) -> tuple[WeightSet, ...]:
        """The old policy stands still during an update."""
        old = WeightSet(
            "old",
            "training_step",
            lambda n: min(self.old_rate * n, self.old_most),
            frozenset({"sampling", "loss"}),
        )
        return (*super().weight_sets(ema), old)

    def check(self, kernel: KernelSettings, learner: LearnerSettings, prompts_per_step: int) -> None:
        """Refuses experience of an earlier version."""
        super().check(kernel, learner, prompts_per_step)
        if learner.max_staleness:
            raise ValueError(
                "learner.max_staleness: DiffusionNFT compares with the policy that its images came from as it is now; "
                "set max_staleness to 0"
            )


METHOD = Method(
    plan=SamplesSettings(seeds=24),
    kernel=FlowSDESettings(),
    advantage=AdvantageSettings(group="prompt", std="batch", epsilon=1e-4),
    objective=NftSettings(kl=1e-4),
)
