"""TempFlow-GRPO's plan, and G²RPO's."""

import numpy as np

from actors.rollout.plans.plan import Fork, Plan
from actors.rollout.plans.settings import TrunkSettings
from services.base.errors import UserError


def trunk_plan(settings: TrunkSettings, num_steps: int, rng: np.random.Generator) -> Plan:
    """TempFlow-GRPO (arXiv 2508.04324): branches at steps 0..T−2, each completed by ODE.

    G²RPO (arXiv 2510.01982) is the same with one seed, K = 12, the first half of the steps, and each action completed
    with several strides (its granularities), whose advantages are summed.

    With `strata`, step i is drawn with probability p_i = 1 / (steps of its stratum): over draws, Σ (1/p_i)·(loss of
    step i) has the expectation of the full sum, and Σ 1/p_i of one draw is always the full number of steps.

    Deviations: from the FLUX and Qwen-Image scripts of TempFlow-GRPO, no branch is drawn at the last step, which they
    decode and score without training on it; from its paper, `branch_steps` may leave out late steps. From G²RPO's code:
    granularities are those of the text, {1, 2, 3}, where it has {1, 2}; coarse steps start at the branch, where it
    first takes a fine one; and all steps share an optimizer step, where it takes one each.

    Raises:
        UserError: more strata than steps.
    """
    steps = trunk_steps(settings, num_steps)
    chances = dict.fromkeys(steps, 1.0)
    if settings.strata:
        if settings.strata > len(steps):
            raise UserError(f"plan.strata: {settings.strata} steps cannot be drawn from {len(steps)}")
        strata = np.array_split(steps, settings.strata)
        chances = {int(rng.choice(part)): 1 / len(part) for part in strata}
    forks = [Fork() for _ in range(num_steps)]
    for i, chance in chances.items():
        forks[i] = Fork(settings.explorations, strides=settings.strides, chance=chance)
    return Plan(settings.seeds, tuple(forks), settings.solver)


def trunk_steps(settings: TrunkSettings, num_steps: int) -> list[int]:
    """The steps that may branch."""
    return list(range(min(settings.branch_steps or num_steps, num_steps - 1)))
