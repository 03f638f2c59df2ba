"""The plan of deterministic trunks with branches."""

import numpy as np

from actors.rollout.plans.plan import Fork, Plan
from actors.rollout.plans.settings import TrunkSettings
from services.base.errors import UserError


def trunk_plan(settings: TrunkSettings, num_steps: int, rng: np.random.Generator) -> Plan:
    """Branches at steps 0..T−2, or at the first of these, each completed by ODE once per stride.

    With `strata`, step i is drawn with probability p_i = 1 / (steps in its stratum). The expectation of
    Σ (1/p_i)·(loss of step i) over draws is the full sum, and Σ 1/p_i of each draw is the full number of steps.

    Raises:
        UserError: there are more strata than steps.
    """
    steps = trunk_steps(settings, num_steps)
    chances = dict.fromkeys(steps, 1.0)
    if settings.strata:
        if settings.strata > len(steps):
            raise UserError(f"plan.strata: {settings.strata} steps cannot be drawn from {len(steps)}; lower it")
        strata = np.array_split(steps, settings.strata)
        chances = {int(rng.choice(part)): 1 / len(part) for part in strata}
    forks = [Fork() for _ in range(num_steps)]
    for i, chance in chances.items():
        strides = settings.first_strides if i == 0 and settings.first_strides else settings.strides
        forks[i] = Fork(settings.explorations, strides=strides, chance=chance)
    return Plan(settings.seeds, tuple(forks), settings.solver)


def trunk_steps(settings: TrunkSettings, num_steps: int) -> list[int]:
    """The steps that may branch."""
    return list(range(min(settings.branch_steps or num_steps, num_steps - 1)))
