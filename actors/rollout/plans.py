"""Plans: which steps of a trajectory are stochastic, how widely they branch, and how a branch goes on.

A plan is data: one Fork a sampling step. The sampler runs every plan; no actor knows a method.
"""

from dataclasses import dataclass

from actors.rollout.settings import ChainSettings, PlanSettings, TrunkSettings
from services.errors import UserError


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


@dataclass(frozen=True)
class Plan:
    """What one task generates: `seeds` trunks, one Fork a step."""

    seeds: int
    forks: tuple[Fork, ...]

    @property
    def trained_steps(self) -> list[int]:
        return [i for i, fork in enumerate(self.forks) if fork.width and fork.trained]

    @property
    def last_fork(self) -> int:
        """The last step with actions, −1 without any. A kept trunk is not completed beyond it."""
        return max((i for i, fork in enumerate(self.forks) if fork.width), default=-1)

    def alive(self) -> list[tuple[int, int]]:
        """(trunks, branches) that need a velocity at each step."""
        trunks, branches, alive = self.seeds, 0, []
        for i, fork in enumerate(self.forks):
            alive.append((trunks, branches))
            if fork.width and fork.keep_trunk:
                branches += trunks * fork.width
                trunks = 0 if i == self.last_fork else trunks
            elif fork.width:
                trunks *= fork.width
        return alive

    @property
    def nfe(self) -> int:
        """Velocities of one task (transformer forwards without guidance)."""
        return sum(trunks + branches for trunks, branches in self.alive())

    @property
    def decisions(self) -> int:
        """Trained states of one task."""
        return sum(
            trunks for (trunks, _), fork in zip(self.alive(), self.forks, strict=True) if fork.width and fork.trained
        )

    @property
    def actions(self) -> int:
        """Trained actions of one task."""
        pairs = zip(self.alive(), self.forks, strict=True)
        return sum(trunks * fork.width for (trunks, _), fork in pairs if fork.trained)

    @property
    def leaves(self) -> int:
        """Final images of one task."""
        (trunks, branches), fork = self.alive()[-1], self.forks[-1]
        if not fork.width:
            return trunks + branches
        return branches + trunks * fork.width


def trunk_plan(settings: TrunkSettings, num_steps: int) -> Plan:
    """TempFlow-GRPO (arXiv 2508.04324): branches at steps 0..T−2, each completed by ODE.

    Deviations: from the FLUX and Qwen-Image scripts, no branch is drawn at the last step, which they decode and
    score without training on it; from the paper, `branch_steps` may leave out late steps.
    """
    branching = min(settings.branch_steps or num_steps, num_steps - 1)
    fork = Fork(width=settings.explorations)
    return Plan(settings.seeds, (fork,) * branching + (Fork(),) * (num_steps - branching))


def chain_plan(settings: ChainSettings, num_steps: int) -> Plan:
    """Flow-GRPO (arXiv 2505.05470): all steps stochastic; the last is sampled but not trained."""
    fork = Fork(width=1, keep_trunk=False)
    return Plan(settings.seeds, (fork,) * (num_steps - 1) + (Fork(width=1, keep_trunk=False, trained=False),))


def make_plan(settings: PlanSettings, num_steps: int) -> Plan:
    """The plan of a recipe.

    Raises:
        UserError: no step is left to train.
    """
    plan = trunk_plan(settings, num_steps) if isinstance(settings, TrunkSettings) else chain_plan(settings, num_steps)
    if not plan.trained_steps:
        raise UserError(f"policy.num_steps: {num_steps} leaves no step to train; at least 2 are needed")
    return plan


def ode_plan(num_steps: int) -> Plan:
    """One deterministic trajectory: evaluation and plain sampling."""
    return Plan(1, (Fork(),) * num_steps)
