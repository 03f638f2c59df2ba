"""Other ways to lay a recipe's processes out over as many GPUs, each with the settings that make it."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

from services.scoring.settings import Replicas
from system.capacity.cards import TINY, Card
from system.capacity.memory import SCORER, asks, processes
from system.capacity.packing import fewest
from system.recipe.find import layer_names
from system.recipe.load import layer_values
from system.recipe.model import RunConfig

STEPS_OF_A_GPU = 20
"""A replica that shares a GPU asks for a multiple of 1/20 of it."""
LAID_OUT = {"rollout": ("workers", "max_workers", "num_gpus"), "learner": ("ranks", "num_gpus")}
"""The settings of the roles that a layout changes, beside `placement` and those of the scorers."""


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """A recipe with other values: `changed(config, learner={"micro_batch": 2})`."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


def is_allowed(config: RunConfig) -> bool:
    """Whether the learner's settings fit the others; a copy with other values has not been checked."""
    colocated = config.placement == "colocated"
    try:
        config.learner.check(config.data.prompts_per_step, config.policy, colocated, config.rollout.workers)
    except ValueError:
        return False
    return True


def layouts(config: RunConfig, card: Card, gpus: int) -> Iterator[RunConfig]:
    """The recipe laid out over so many GPUs in other ways that it allows. Whether they fit is not checked.

    The rewards keep their GPUs, and the others are of both roles or are split between them; or each GPU has both roles
    and a replica of each reward model.
    """
    if not (0 < config.rollout.num_gpus <= 1 and 0 < config.learner.num_gpus <= 1):
        return
    left = gpus - fewest([], asks(processes(config))[1])
    found = [_of_roles(config, "colocated", left, left, 1)]
    found += [_of_roles(config, "split", left - ranks, ranks, 1) for ranks in range(1, left)]
    found += _shared(config, card, gpus)
    yield from (other for other in found if other.rollout.workers > 0 and is_allowed(other))


def _of_roles(config: RunConfig, placement: str, workers: int, ranks: int, num_gpus: float) -> RunConfig:
    """A recipe with other numbers of processes."""
    rollout = {"workers": workers, "max_workers": None, "num_gpus": num_gpus}
    other = config.model_copy(update={"placement": placement})
    return changed(other, rollout=rollout, learner={"ranks": ranks, "num_gpus": num_gpus})


def _shared(config: RunConfig, card: Card, gpus: int) -> list[RunConfig]:
    """Both roles and a replica of each reward model on every GPU, if the memory of the reward models is known.

    All replicas ask for the same fraction, the least that all of them fit. With different ones, Ray could put several
    replicas of one scorer on a card and leave no place for those of another.
    """
    scorers = {one.role.removeprefix(SCORER): one for one in processes(config) if one.role.startswith(SCORER)}
    scorers = {name: one for name, one in scorers.items() if one.gpus}
    if not scorers or not all(one.peak_bytes for one in scorers.values()):
        return []
    needed = max(one.least_share(card) for one in scorers.values())
    share = ceil(needed * STEPS_OF_A_GPU - TINY) / STEPS_OF_A_GPU
    rest = round(1 - share * len(scorers), 2)
    if rest <= 0:
        return []
    more = {"replicas": Replicas(min=gpus, max=gpus), "num_gpus": share}
    replicas = tuple(scorer.model_copy(update=more) if scorer.name in scorers else scorer for scorer in config.scorers)
    return [_of_roles(config, "colocated", gpus, gpus, rest).model_copy(update={"scorers": replicas})]


def overrides(config: RunConfig, other: RunConfig) -> list[str]:
    """The settings that turn a recipe into one of its layouts, as `key=value`."""
    found = [] if config.placement == other.placement else [f"placement={other.placement}"]
    pairs = [
        (f"{section}.{key}", getattr(getattr(config, section), key), getattr(getattr(other, section), key))
        for section, keys in LAID_OUT.items()
        for key in keys
    ]
    for old, new in zip(config.scorers, other.scorers, strict=True):
        name = f"scorers.{new.name}"
        pairs += [(f"{name}.replicas", old.replicas, new.replicas), (f"{name}.num_gpus", old.num_gpus, new.num_gpus)]
    return found + [f"{key}={_text(new)}" for key, old, new in pairs if new != old]


def _text(value: Replicas | float | None) -> str:
    if isinstance(value, Replicas):
        return str(value.max)
    return "null" if value is None else f"{value:g}"


def layer_of(config: RunConfig) -> str:
    """The hardware layer that comes with tempflow and places both roles as this recipe does; empty if none does."""
    rollout, learner = config.rollout, config.learner
    placed = (config.placement, rollout.workers, rollout.num_gpus, learner.ranks, learner.num_gpus)
    return next((name for name in layer_names("hardware") if placed == _placed(name)), "")


def _placed(layer: str) -> tuple[Any, ...]:
    values = layer_values("hardware", layer)
    rollout, learner = values.get("rollout", {}), values.get("learner", {})
    keys = [(rollout, "workers"), (rollout, "num_gpus"), (learner, "ranks"), (learner, "num_gpus")]
    return (values.get("placement"), *(section.get(key) for section, key in keys))
