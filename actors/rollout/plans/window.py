"""The plans with a window of stochastic steps: Flow-GRPO-Fast and MixGRPO."""

import math
from dataclasses import replace

import numpy as np

from actors.rollout.plans.plan import Fork, Plan
from actors.rollout.plans.settings import WindowSettings
from services.base.errors import UserError


def window_plan(settings: WindowSettings, num_steps: int, step: int, rng: np.random.Generator) -> Plan:
    """ODE, then a few SDE steps that are trained, then ODE to the end.

    Flow-GRPO-Fast: a random window of 3 in the first half of the steps, a group branching from one trajectory as its
    text says (its code starts each image from a noise of its own: shared_noise = false). MixGRPO (arXiv 2507.21802):
    one noise, and a window of 4 that slides; its Flash variant goes on after the window with a stride of 1/0.4 and
    DPM-Solver++ of second order.

    The last window step keeps no trunk: its action is a branch, completed with `stride` and `solver`.

    Deviations: Flash's compressed steps are points of the full grid, where its code makes a new grid from the window's
    end; its first step after the window is of first order, where the code uses the x̂₀ of the last stochastic step.

    Raises:
        UserError: the window is longer than the steps it lies in.
    """
    if settings.size > (limit := window_limit(settings, num_steps)):
        raise UserError(f"plan.size: a window of {settings.size} steps does not fit into {limit}; lower it")
    first = window_start(settings, num_steps, step, rng)
    last = first + settings.size - 1
    forks = [Fork() for _ in range(num_steps)]
    for i in range(first, last + 1):
        forks[i] = Fork(1, keep_trunk=i == last, strides=(settings.stride,))
    seeds = settings.seeds
    if settings.shared_noise:
        seeds = 1
        forks[first] = replace(forks[first], width=settings.seeds)
    return Plan(seeds, tuple(forks), settings.solver)


def window_start(settings: WindowSettings, num_steps: int, step: int, rng: np.random.Generator) -> int:
    """First step of the window in training step `step`."""
    latest = window_limit(settings, num_steps) - settings.size
    if settings.strategy == "random":
        return int(rng.integers(latest + 1))
    starts = list(range(0, latest + 1, settings.shift))
    stays = [_stay(settings, start) for start in starts]
    step %= sum(stays)
    for start, stay in zip(starts, stays, strict=True):
        if step < stay:
            return start
        step -= stay
    raise AssertionError("unreachable: step is below the sum of stays")


def _stay(settings: WindowSettings, start: int) -> int:
    """Training steps that the window stays at `start`: ⌈every · exp(−decay_rate · max(0, start − decay_from))⌉."""
    if settings.strategy == "progressive":
        return settings.every
    return math.ceil(settings.every * math.exp(-settings.decay_rate * max(0, start - settings.decay_from)))


def window_limit(settings: WindowSettings, num_steps: int) -> int:
    """The step before which every window ends."""
    return min(settings.within or num_steps, num_steps - 1)
