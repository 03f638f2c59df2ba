"""Whether a recipe fits the GPUs that it is given, and the one setting that makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from system.capacity.cards import Card
from system.capacity.layouts import changed, is_allowed
from system.capacity.memory import SCORER, Process, asks, processes
from system.capacity.packing import Ask, Packing, fewest, nodes_of, pack
from system.recipe.model import RunConfig

MOST_HALVINGS = 6

Processes = Callable[[RunConfig], list[Process]]
"""Gives the processes of a recipe, such as `processes` or the one of a run without Ray."""


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


def fit_of(config: RunConfig, nodes: list[int] | None, card: Card, of: Processes = processes) -> Fit:
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
