"""Whether a recipe fits the GPUs that it is given, how long it takes and what it costs: all of `tempflow plan`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from system.capacity.cards import Card
from system.capacity.counts import checkpoint_bytes, checkpoint_share, store_bytes
from system.capacity.fit import Fit, fit_of, fits_card
from system.capacity.host import host_bytes, host_processes
from system.capacity.layouts import changed, layer_of, layouts, overrides
from system.capacity.memory import Process, asks, processes, reward_gpus, shared_scorers
from system.capacity.packing import fewest, nodes_of, pack
from system.capacity.timing import StepTime, TaskTime, step_seconds, task_seconds
from system.recipe.model import RunConfig

MOST_PADDING = 0.03
"""A recipe that pads more rows than this wastes them; its micro-batch does not fit its plan."""
HOUR_S, DAY_S = 3600, 86400


@dataclass(frozen=True)
class Split:
    """How the roles share the GPUs, and the seconds of a step with that."""

    placement: str
    rollout: int
    learner: int
    reward: int
    """GPUs that have reward models alone."""
    shared: bool
    """Whether reward models are on GPUs of the rollout workers."""
    seconds: float
    overrides: list[str]
    """The settings that make it of the recipe; empty for the recipe's own."""
    hardware: str
    """The hardware layer that places rollout and learner like this; empty if none does."""


@dataclass(frozen=True)
class Estimate(Fit):
    """What a recipe needs."""

    host: list[Process]
    """The same processes, and the driver, with their memory on the host."""
    host_bytes: float
    """Host memory of all processes at their peaks, the object store included."""
    task: TaskTime
    step: StepTime
    store_bytes: float
    """Most of the object store at one time: images in flight and the experience of the steps in flight."""
    checkpoint_bytes: float
    disk_bytes_per_day: float
    """Checkpoints that are written in a day; older ones are deleted."""
    gpu_hours: float
    """GPU-hours of all steps, evaluation included."""
    best: Split
    """The fastest split of as many GPUs that fits; the recipe's own where no other is faster."""
    own: Split
    waits: float
    """The share of a step in which the GPUs wait, in the mean over those of all roles."""
    merged_seconds: float | None
    """Seconds of a step with `rollout.merge_adapter`; None where there is no adapter or it is merged."""


def estimate_of(config: RunConfig, gpus: int | None, card: Card) -> Estimate:
    """What a recipe needs, on so many of a card; on as many as it needs if not given.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    fit = fit_of(config, None if gpus is None else nodes_of(gpus), card)
    task = task_seconds(config, card)
    step = step_seconds(config, card, task)
    host = host_processes(config)
    own, size, seconds = _split_of(config, config, step), checkpoint_bytes(config), step.total + step.evaluation
    return Estimate(
        **vars(fit),
        host=host,
        host_bytes=host_bytes(config, host),
        task=task,
        step=step,
        store_bytes=store_bytes(config),
        checkpoint_bytes=size,
        disk_bytes_per_day=size * checkpoint_share(config) * DAY_S / seconds,
        gpu_hours=seconds * config.steps / HOUR_S * max(fit.gpus, fewest(*asks(fit.processes))),
        best=min([own, *_splits(config, card, fit.gpus)], key=lambda split: split.seconds),
        own=own,
        waits=_waits(config, step),
        merged_seconds=_merged_seconds(config, card),
    )


def _waits(config: RunConfig, step: StepTime) -> float:
    gpus = {
        "rollout and learner": config.rollout.workers,
        "rollout": config.rollout.workers * config.rollout.num_gpus,
        "learner": config.learner.ranks * config.learner.num_gpus,
        "reward": reward_gpus(config),
    }
    shares = {role: gpus[role] for role in step.idle}
    if reward_gpus(config) and "reward" not in step.idle:  # they score held-out images alone
        shares["reward"] = reward_gpus(config)
    every = sum(shares.values())
    return sum(step.idle.get(role, 1.0) * count for role, count in shares.items()) / every if every else 0.0


def _merged_seconds(config: RunConfig, card: Card) -> float | None:
    if config.policy.lora is None or config.rollout.merge_adapter:
        return None
    merged = changed(config, rollout={"merge_adapter": True})
    return step_seconds(merged, card, task_seconds(merged, card)).total


def _split_of(config: RunConfig, other: RunConfig, step: StepTime) -> Split:
    colocated = other.placement == "colocated"
    return Split(
        placement=other.placement,
        rollout=other.rollout.workers,
        learner=other.learner.ranks if not colocated else 0,
        reward=reward_gpus(other),
        shared=bool(shared_scorers(other)),
        seconds=step.total,
        overrides=overrides(config, other),
        hardware=layer_of(other),
    )


def _splits(config: RunConfig, card: Card, gpus: int) -> Iterator[Split]:
    """Other layouts over so many GPUs that fit them."""
    for other in layouts(config, card, gpus):
        found = processes(other)
        if fits_card(found, card) and not pack(*asks(found), nodes_of(gpus)).unplaced:
            yield _split_of(config, other, step_seconds(other, card, task_seconds(other, card)))
