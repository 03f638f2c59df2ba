"""Whether a recipe fits the GPUs that it is given, how long it takes and what it costs: all of `tempflow plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from services.base.errors import UserError
from system.capacity.cards import CARDS, GB, Card, is_called
from system.capacity.counts import checkpoint_bytes, store_bytes
from system.capacity.host import host_bytes, host_processes, node_share
from system.capacity.layouts import changed, is_allowed, layer_of, layouts, overrides
from system.capacity.memory import SCORER, Process, asks, processes, reward_gpus, shared_scorers
from system.capacity.packing import Ask, Packing, fewest, nodes_of, pack
from system.capacity.timing import StepTime, TaskTime, step_seconds, task_seconds
from system.recipe.model import RunConfig

MOST_PADDING = 0.03
"""A recipe that pads more rows than this wastes them; its micro-batch does not fit its plan."""
HOUR_S, DAY_S = 3600, 86400
MOST_HALVINGS = 6

Processes = Callable[[RunConfig], list[Process]]
"""Gives the processes of a recipe, such as `processes` or the one of a run without Ray."""


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
class Fit:
    """Whether a recipe fits the GPUs that it is given."""

    card: Card
    gpus: int
    """GPUs that there are."""
    asked: float
    """GPUs that the recipe's roles ask for."""
    processes: list[Process]
    packing: Packing
    fix: str | None
    """The one setting that makes it fit, or a sentence that says that none does; None where it fits."""

    @property
    def fits(self) -> bool:
        return self.fix is None

    @property
    def fullest(self) -> list[Process]:
        """The processes that meet on the GPU on which their peaks add up to most; empty without GPUs."""
        by_role = {one.role: one for one in self.processes}
        cards = [[by_role[role] for role in roles] for roles in self.packing.cards]
        return max(cards, key=peak_bytes, default=[])


def peak_bytes(together: list[Process]) -> float:
    """The most that processes take together: their peaks may come at the same time."""
    return sum(one.peak_bytes for one in together)


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


def parse_gpus(text: str, measured: Card | None = None) -> tuple[int, Card]:
    """`8xH100`: a number and a card, whose rates are those of `measured` if it is given.

    Raises:
        UserError: it is no such text, the card is not known, or it is another one than the measured card.
    """
    count, _, name = text.partition("x")
    if not count.isdigit() or not int(count) or not name:
        raise UserError(f"--gpus: `{text}` is not a number of cards; give it as 8xH100")
    if measured is not None:
        if not is_called(measured.name, name):
            raise UserError(
                f"--gpus names the card `{name}`, but --card has the rates of `{measured.name}`; leave out --card, or "
                "name in --gpus the card that was measured"
            )
        return int(count), measured
    found = next((card for card in CARDS.values() if card.name.lower() == name.lower()), None)
    if found is None:
        raise UserError(f"--gpus: no card `{name}`; there are {', '.join(CARDS)}, or give --card with a measured one")
    return int(count), found


def fit_of(
    config: RunConfig, nodes: list[int] | None, card: Card, of: Callable[[RunConfig], list[Process]] = processes
) -> Fit:
    """Whether a recipe fits the cards of some nodes; as many as it needs if not given.

    Raises:
        UserError: the shapes of the policy's model are not known.
    """
    found = of(config)
    group, replicas = asks(found)
    nodes = nodes_of(fewest(group, replicas)) if nodes is None else nodes
    packing = pack(group, replicas, nodes)
    fits = fits_card(found, card) and not packing.unplaced
    asked = sum(one.count * one.gpus for one in found)
    return Fit(card, sum(nodes), asked, found, packing, None if fits else _fix(config, card, packing.unplaced, of))


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
        disk_bytes_per_day=size * DAY_S / (seconds * config.checkpoint.every),
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


def fits_card(found: list[Process], card: Card) -> bool:
    """Whether every process fits its share of a card. Scorers without a GPU are on the CPU.

    PyTorch gives no process more than its share, and the shares on a card are at most 1 together. So the processes that
    meet on a card fit it together if each fits its share.
    """
    return all(one.fits(card) for one in found if one.gpus or not one.role.startswith(SCORER))


def single_changes(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Allowed changes of one setting that need less memory, those that cost least first, as `key=value`."""
    return ((text, other) for text, other in _changes(config) if is_allowed(other))


def _changes(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    if config.policy.lora is None and config.learner.optimizer == "adamw":
        yield "learner.optimizer=adamw_offload", changed(config, learner={"optimizer": "adamw_offload"})
    if not config.policy.gradient_checkpointing:
        yield "policy.gradient_checkpointing=true", changed(config, policy={"gradient_checkpointing": True})
    if not config.rollout.offload_text_encoders:
        yield "rollout.offload_text_encoders=true", changed(config, rollout={"offload_text_encoders": True})
    for section, key in (("learner", "micro_batch"), ("rollout", "micro_batch"), ("rollout", "decode_batch")):
        value = getattr(getattr(config, section), key)
        for _ in range(MOST_HALVINGS):
            if value > 1:
                value //= 2
                yield f"{section}.{key}={value}", changed(config, **{section: {key: value}})
    if not config.learner.shard:
        yield "learner.shard=true", changed(config, learner={"shard": True})
    if config.placement == "split":
        yield "placement=colocated", config.model_copy(update={"placement": "colocated"})


def _fix(config: RunConfig, card: Card, unplaced: Ask | None, of: Processes) -> str:
    if unplaced:
        return (
            "choose another `hardware` or a recipe for fewer GPUs (`tempflow recipes` lists them), lower "
            "rollout.workers, learner.ranks and the replicas of the scorers, or give workers and ranks whole GPUs"
        )
    for text, other in single_changes(config):
        if fits_card(of(other), card):
            return f"set {text}"
    return f"no single setting makes it fit the {card.name}; take a card with more memory, or a smaller model"


def _split_of(config: RunConfig, other: RunConfig, step: StepTime) -> Split:
    colocated = other.placement == "colocated"
    return Split(
        other.placement,
        other.rollout.workers,
        other.learner.ranks if not colocated else 0,
        reward_gpus(other),
        bool(shared_scorers(other)),
        step.total,
        overrides(config, other),
        layer_of(other),
    )


def _splits(config: RunConfig, card: Card, gpus: int) -> Iterator[Split]:
    """Other layouts over so many GPUs that fit them."""
    for other in layouts(config, card, gpus):
        found = processes(other)
        if fits_card(found, card) and not pack(*asks(found), nodes_of(gpus)).unplaced:
            yield _split_of(config, other, step_seconds(other, card, task_seconds(other, card)))


def as_json(estimate: Estimate, price: float | None) -> dict[str, Any]:
    """Numbers with their units in the keys."""
    task, step = estimate.task, estimate.step
    return {
        "card": estimate.card.name,
        "rates": estimate.card.source,
        "gpus": estimate.gpus,
        "gpus_asked": estimate.asked,
        "roles_on_gpus": estimate.packing.cards,
        "fits": estimate.fits,
        "fix": estimate.fix,
        "memory_gb": {one.role: _process_as_json(one) for one in estimate.processes},
        "host_memory_gb": {one.role: _process_as_json(one) for one in estimate.host},
        "host_gb": estimate.host_bytes / GB,
        "host_gb_of_a_node": estimate.host_bytes * node_share(estimate.host) / GB,
        "task_s": {name: getattr(task, name) for name in ("encoding", "sampling", "decoding", "scoring", "learning")},
        "task_counts": {"nfe": task.nfe, "images": task.images, "learner_nfe": task.passes},
        "padding": {"sampling": task.sampling_padding, "learning": task.learning_padding},
        "step_s": {
            "rollout": step.rollout,
            "scoring": step.scoring,
            "last_scores": step.last_scores,
            "learning": step.learning,
            "optimizer": step.optimizer,
            "total": step.total,
            "evaluation": step.evaluation,
        },
        "idle": step.idle,
        "idle_gpus": estimate.waits,
        "store_gb": estimate.store_bytes / GB,
        "checkpoint_gb": estimate.checkpoint_bytes / GB,
        "disk_gb_per_day": estimate.disk_bytes_per_day / GB,
        "gpu_hours": estimate.gpu_hours,
        "price": None if price is None else price * estimate.gpu_hours,
        "best_split": vars(estimate.best),
        "own_split": vars(estimate.own),
        "merged_step_s": estimate.merged_seconds,
    }


def _process_as_json(one: Process) -> dict[str, Any]:
    return {
        "processes": one.count,
        "gpus_each": one.gpus,
        "peak": one.peak_bytes / GB,
        "peak_phase": one.phase,
        "held": {name: num_bytes / GB for name, num_bytes in one.held.items()},
        "phases": {name: num_bytes / GB for name, num_bytes in one.phases.items()},
    }
