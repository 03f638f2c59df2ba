"""The plan with a window of stochastic steps."""

import math
from dataclasses import replace

import numpy as np

from actors.rollout.plans.plan import Fork, Plan
from actors.rollout.plans.settings import WindowSettings
from services.base.errors import UserError


def window_plan(settings: WindowSettings, num_steps: int, training_step: int, rng: np.random.Generator) -> Plan:
    """ODE steps, then a window of SDE steps that are trained, then ODE steps to the end.

    At the window's last step the trunk ends, and the action becomes a branch that is completed with `stride` and
    `solver`.

    Raises:
        UserError: the window is longer than the range of steps that it must stay in.
    """
    if settings.size > (limit := window_limit(settings, num_steps)):
        raise UserError(f"plan.size: a window of {settings.size} steps does not fit into {limit}; lower it")
    first = window_start(settings, num_steps, training_step, rng)
    last = first + settings.size - 1
    baseline = settings.baseline_stride if settings.baselines else None
    forks = [Fork() for _ in range(num_steps)]
    for i in range(first, last + 1):
        forks[i] = Fork(1, keep_trunk=i == last, strides=(settings.stride,), baseline=baseline)
    seeds = settings.seeds
    if settings.shared_noise:
        seeds = 1
        forks[first] = replace(forks[first], width=settings.seeds)
    return Plan(seeds, tuple(forks), settings.solver)


def window_start(settings: WindowSettings, num_steps: int, training_step: int, rng: np.random.Generator) -> int:
    """The first sampling step of the window in a training step, counted from 0."""
    latest = window_limit(settings, num_steps) - settings.size
    if settings.strategy == "random":
        return int(rng.integers(latest + 1))
    starts = list(range(0, latest + 1, settings.shift))
    stays = [_stay(settings, start) for start in starts]
    left = training_step % sum(stays)
    for start, stay in zip(starts, stays, strict=True):
        if left < stay:
            return start
        left -= stay
    raise AssertionError("unreachable: what is left is below the sum of stays")


def _stay(settings: WindowSettings, start: int) -> int:
    """The number of training steps for which the window stays at `start`: `every`, or with `decay`
    ⌈every · exp(−decay_rate · max(0, start − decay_from))⌉.
    """
    if settings.strategy == "progressive":
        return settings.every
    return math.ceil(settings.every * math.exp(-settings.decay_rate * max(0, start - settings.decay_from)))


def window_limit(settings: WindowSettings, num_steps: int) -> int:
    """The sampling step before which every window ends."""
    return min(settings.within or num_steps, num_steps - 1)
