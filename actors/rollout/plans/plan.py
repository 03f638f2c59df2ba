"""The data of a plan: which steps are stochastic, how widely they branch, and how a branch is completed."""

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

Solver = Literal["euler", "dpm2"]


@dataclass(frozen=True)
class Fork:
    """The operation on each unfinished trunk of a task at one step."""

    width: int = 0
    """K, the number of actions drawn from the trunk's state. 0 is a plain ODE step."""
    keep_trunk: bool = True
    """True: the deterministic trunk continues, and its actions become branches (ODE to the end).
    False: the actions become the new trunks."""
    trained: bool = True
    """Whether the actions enter the loss."""
    strides: tuple[float, ...] = (1.0,)
    """A branch is completed once per stride, to one leaf each. A stride is the number of grid steps in one step."""
    baseline: float | None = None
    """The stride with which the trunk's state is also completed by ODE; None: it is not completed. This leaf shows the
    image without the actions. It belongs to each of the actions and to their ancestors."""
    chance: float = 1.0
    """The probability that a draw of the plan has this fork. The loss weights its actions by 1 / chance, and so is an
    unbiased estimate of the sum over all steps. The chance is 1 if the loss estimates no such sum."""


class Fate(Enum):
    """What happens to a trunk at a step."""

    CONTINUES = auto()
    """The trunk has no actions and takes a deterministic step."""
    BRANCHES = auto()
    """The actions become branches, and the trunk takes a deterministic step."""
    ENDS = auto()
    """The actions become branches. No later step forks, so the trunk is not completed."""
    SPLITS = auto()
    """The actions become the new trunks."""


@dataclass(frozen=True)
class Plan:
    """The trajectories of one task: `seeds` trunks, with one Fork per step."""

    seeds: int
    forks: tuple[Fork, ...]
    solver: Solver = "euler"
    """The ODE solver of the branches. Trunks use Euler's method."""

    @property
    def trained_steps(self) -> list[int]:
        return [i for i, fork in enumerate(self.forks) if fork.width and fork.trained]

    @property
    def siblings(self) -> int:
        """K of every decision: the width of the forks. If widths differ, each action is its own decision, K = 1."""
        widths = {fork.width for fork in self.forks if fork.width}
        return widths.pop() if len(widths) == 1 else 1

    @property
    def last_fork(self) -> int:
        """The last step with actions, or −1 if there is none. After it, a kept trunk is not completed."""
        return max((i for i, fork in enumerate(self.forks) if fork.width), default=-1)

    def fate(self, i: int) -> Fate:
        """What happens to each trunk at step i."""
        fork = self.forks[i]
        if not fork.width:
            return Fate.CONTINUES
        if not fork.keep_trunk:
            return Fate.SPLITS
        return Fate.ENDS if i == self.last_fork else Fate.BRANCHES

    def trunks(self) -> list[int]:
        """The number of trunks that need a velocity, for each step."""
        live, counts = self.seeds, []
        for i, fork in enumerate(self.forks):
            counts.append(live)
            fate = self.fate(i)
            if fate is Fate.SPLITS:
                live *= fork.width
            elif fate is Fate.ENDS:
                live = 0
        return counts

    def baseline_visits(self, i: int) -> tuple[int, ...]:
        """The grid points of the baselines of step i after their state; empty if there are none.

        The first of them is reached with the velocity at the state itself, which the trunk computes.
        """
        stride = self.forks[i].baseline
        return () if stride is None else visits(i, len(self.forks), stride)[1:]

    @property
    def nfe(self) -> int:
        """The number of velocities that one task computes (transformer forwards without guidance)."""
        completions = (
            trunks * fork.width * (len(visits(i + 1, len(self.forks), stride)) - 1)
            for i, (trunks, fork) in enumerate(zip(self.trunks(), self.forks, strict=True))
            if fork.keep_trunk and fork.width
            for stride in fork.strides
        )
        baselines = (trunks * len(self.baseline_visits(i)[:-1]) for i, trunks in enumerate(self.trunks()))
        return sum(self.trunks()) + sum(completions) + sum(baselines)

    @property
    def decisions(self) -> int:
        """The number of trained states in one task. Each has `siblings` actions."""
        return self.actions // self.siblings

    @property
    def actions(self) -> int:
        """The number of trained actions in one task."""
        pairs = zip(self.trunks(), self.forks, strict=True)
        return sum(trunks * fork.width for trunks, fork in pairs if fork.trained)

    @property
    def leaves(self) -> int:
        """The number of final images of one task."""
        trunks, forks = self.trunks(), self.forks
        branches = sum(t * f.width * len(f.strides) for t, f in zip(trunks, forks, strict=True) if f.keep_trunk)
        branches += sum(t for t, f in zip(trunks, forks, strict=True) if f.baseline is not None)
        if not forks[-1].keep_trunk:
            return branches + trunks[-1] * forks[-1].width
        return branches + (0 if self.last_fork == len(forks) - 1 else trunks[-1])


def visits(first: int, num_steps: int, stride: float) -> tuple[int, ...]:
    """The grid points of a completion that starts at `first`: first + ⌊k·stride⌋, and the end, `num_steps`.

    It needs a velocity at each point except the last.
    """
    count = math.ceil((num_steps - first) / stride)
    return (*(first + math.floor(k * stride) for k in range(count)), num_steps)


def ode_plan(num_steps: int, seeds: int = 1) -> Plan:
    """Deterministic trajectories, for evaluation, plain sampling, and methods that train on finished images."""
    return Plan(seeds, (Fork(),) * num_steps)
