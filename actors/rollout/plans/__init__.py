"""Plans: which steps of a trajectory are stochastic, how widely they branch, and how a branch is completed.

A plan is data: one Fork per sampling step. The sampler can run any plan, and no actor knows a method.
"""

import numpy as np

from actors.rollout.plans.chain import chain_plan
from actors.rollout.plans.plan import Fork, Plan, ode_plan
from actors.rollout.plans.settings import (
    ChainSettings,
    PlanSettings,
    SamplesSettings,
    TreeSettings,
    TrunkSettings,
    WindowSettings,
)
from actors.rollout.plans.tree import tree_plan
from actors.rollout.plans.trunk import trunk_plan, trunk_steps
from actors.rollout.plans.window import window_limit, window_plan

__all__ = ["Fork", "Plan", "make_plan", "ode_plan", "trainable_steps"]

PLANS_STREAM = 11
"""Separates the random choices of plans from other random numbers with the same address."""


def make_plan(settings: PlanSettings, num_steps: int, address: tuple[int, int, int] = (0, 0, 0)) -> Plan:
    """The plan of one task: a pure function of the recipe and of the task's address (run seed, training
    step, prompt row).

    Only the trunk plan draws for each task. The other plans are the same for all tasks of a training step.

    Raises:
        UserError: the plan does not fit this number of steps.
    """
    seed, training_step, _ = address
    match settings:
        case TrunkSettings():
            return trunk_plan(settings, num_steps, _generator(*address))
        case ChainSettings():
            return chain_plan(settings, num_steps, _generator(seed, training_step))
        case WindowSettings():
            return window_plan(settings, num_steps, training_step, _generator(seed, training_step))
        case TreeSettings():
            return tree_plan(settings, num_steps, training_step)
        case SamplesSettings():
            return ode_plan(num_steps, settings.seeds)


def _generator(*address: int) -> np.random.Generator:
    return np.random.default_rng([PLANS_STREAM, *address])


def trainable_steps(settings: PlanSettings, num_steps: int) -> list[int]:
    """The sampling steps that can be trained in any draw of the plan. The noise weights have mean 1 over them."""
    match settings:
        case TrunkSettings():
            return trunk_steps(settings, num_steps)
        case WindowSettings():
            return list(range(window_limit(settings, num_steps)))
        case SamplesSettings():
            return []
        case _:
            return list(range(num_steps - 1))
