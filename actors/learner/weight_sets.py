"""The weight sets that a learner keeps beside the trained weights: how each follows them, and what it is used for.

An objective declares its sets (`ObjectiveSettings.weight_sets`). No Torch, so that a recipe can be checked without it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Use = Literal["sampling", "evaluation", "loss"]
"""`sampling`: rollout workers generate from it. `evaluation`: held-out images and the saved model come from it. `loss`:
the objective compares the trained weights with it."""
StepKind = Literal["optimizer_step", "training_step"]


@dataclass(frozen=True)
class WeightSet:
    """A moving average of the trained weights: set ← d·set + (1 − d)·trained."""

    name: str
    """The name of its file in a checkpoint."""
    follows: StepKind
    """The kind of step that it follows."""
    decay: Callable[[int], float]
    """d after step n of this kind, counted from 1."""
    uses: frozenset[Use]
    every: int = 1
    """The set changes after every so many of these steps."""


def copied(every: int, *uses: Use) -> WeightSet:
    """A copy of the trained weights, which is made anew after every so many optimizer steps."""
    return WeightSet("copy", "optimizer_step", lambda n: 0.0, frozenset(uses), every)


def quick_average(follows: StepKind, rate: float, most: float, *uses: Use) -> WeightSet:
    """The old policy of an objective on images: an average that keeps min(rate · n, most) of itself after step n."""
    return WeightSet("old", follows, lambda n: min(rate * n, most), frozenset(uses))


def used_for(use: Use, weight_sets: Iterable[WeightSet]) -> WeightSet | None:
    """The set with this use; None if the trained weights themselves have it."""
    return next((weight_set for weight_set in weight_sets if use in weight_set.uses), None)
