"""What a plan is: data that says which steps are stochastic, how widely they branch, and how a branch goes on."""

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

Solver = Literal["euler", "dpm2"]


@dataclass(frozen=True)
class Fork:
    """What happens to each live trunk of a task at one step."""

    width: int = 0
    """K, the actions drawn from the trunk's state; 0 is a plain ODE step."""
    keep_trunk: bool = True
    """True: the deterministic trunk goes on, its actions become branches (ODE to the end).
    False: the actions are the new trunks."""
    trained: bool = True
    """Whether the actions enter the loss."""
    strides: tuple[float, ...] = (1.0,)
    """How branches are completed: one leaf a stride, in steps of so many grid steps."""
    baseline: bool = False
    """Whether the trunk's state is completed by ODE too, at unit stride: a leaf that shows what the image would have
    been without the actions. Each of them owns it, and its ancestors do."""
    chance: float = 1.0
    """Its actions count 1 / chance in the loss: the probability that a draw has this fork, where the loss stands for
    all steps that could have been drawn; 1 where it stands for itself."""


class Fate(Enum):
    """What becomes of a trunk at a step."""

    CONTINUES = auto()
    """It has no actions and takes a deterministic step."""
    BRANCHES = auto()
    """Its actions become branches, and it takes a deterministic step itself."""
    ENDS = auto()
    """Its actions become branches. No later step forks, so it is not completed itself."""
    SPLITS = auto()
    """Its actions are the new trunks."""


@dataclass(frozen=True)
class Plan:
    """What one task generates: `seeds` trunks, one Fork a step."""

    seeds: int
    forks: tuple[Fork, ...]
    solver: Solver = "euler"
    """Of the branches; trunks go by Euler."""

    @property
    def trained_steps(self) -> list[int]:
        return [i for i, fork in enumerate(self.forks) if fork.width and fork.trained]

    @property
    def siblings(self) -> int:
        """K of every decision: the width of the forks. Where they differ each action is a decision, K = 1."""
        widths = {fork.width for fork in self.forks if fork.width}
        return widths.pop() if len(widths) == 1 else 1

    @property
    def last_fork(self) -> int:
        """The last step with actions, −1 without any. A kept trunk is not completed beyond it."""
        return max((i for i, fork in enumerate(self.forks) if fork.width), default=-1)

    def fate(self, i: int) -> Fate:
        """What becomes of each trunk at step i."""
        fork = self.forks[i]
        if not fork.width:
            return Fate.CONTINUES
        if not fork.keep_trunk:
            return Fate.SPLITS
        return Fate.ENDS if i == self.last_fork else Fate.BRANCHES

    def trunks(self) -> list[int]:
        """Trunks that need a velocity at each step."""
        live, counts = self.seeds, []
        for i, fork in enumerate(self.forks):
            counts.append(live)
            fate = self.fate(i)
            if fate is Fate.SPLITS:
                live *= fork.width
            elif fate is Fate.ENDS:
                live = 0
        return counts

    @property
    def nfe(self) -> int:
        """Velocities of one task (transformer forwards without guidance)."""
        completions = (
            trunks * fork.width * (len(visits(i + 1, len(self.forks), stride)) - 1)
            for i, (trunks, fork) in enumerate(zip(self.trunks(), self.forks, strict=True))
            if fork.keep_trunk and fork.width
            for stride in fork.strides
        )
        baselines = (
            trunks * (len(self.forks) - 1 - i)
            for i, (trunks, fork) in enumerate(zip(self.trunks(), self.forks, strict=True))
            if fork.baseline
        )
        return sum(self.trunks()) + sum(completions) + sum(baselines)

    @property
    def decisions(self) -> int:
        """Trained states of one task, each with `siblings` actions."""
        return self.actions // self.siblings

    @property
    def actions(self) -> int:
        """Trained actions of one task."""
        pairs = zip(self.trunks(), self.forks, strict=True)
        return sum(trunks * fork.width for trunks, fork in pairs if fork.trained)

    @property
    def leaves(self) -> int:
        """Final images of one task."""
        trunks, forks = self.trunks(), self.forks
        branches = sum(t * f.width * len(f.strides) for t, f in zip(trunks, forks, strict=True) if f.keep_trunk)
        branches += sum(t for t, f in zip(trunks, forks, strict=True) if f.baseline)
        if not forks[-1].keep_trunk:
            return branches + trunks[-1] * forks[-1].width
        return branches + (0 if self.last_fork == len(forks) - 1 else trunks[-1])


def visits(first: int, num_steps: int, stride: float) -> tuple[int, ...]:
    """The grid points of a completion from point `first` on: first + ⌊k·stride⌋, and the end, `num_steps`.

    At each but the last it needs a velocity.
    """
    count = math.ceil((num_steps - first) / stride)
    return (*(first + math.floor(k * stride) for k in range(count)), num_steps)


def ode_plan(num_steps: int, seeds: int = 1) -> Plan:
    """Deterministic trajectories: evaluation, plain sampling, and methods that train on finished images."""
    return Plan(seeds, (Fork(),) * num_steps)
