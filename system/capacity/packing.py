"""Places the processes of a run on GPUs by the rules of Ray (2.60): whether they fit, and which of them meet.

- A fraction of a GPU is on one card: the one that has least left among those with room. A whole number takes whole
  cards of one node.
- Rollout workers and ranks are one placement group with the strategy PACK. The largest go first, and a node gets as
  many as the SUM of its cards has room for. If its cards then have no room for one of them, the group is not placed,
  even if another node is free.
- Replicas of scorers follow one by one, in the order of the recipe, each on the node that has most left.

CPUs and the labels of nodes are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from system.capacity.cards import TINY

NODE_GPUS = 8
"""GPUs of a node, an assumption."""


@dataclass(frozen=True)
class Ask:
    """The resources that one process asks for."""

    role: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Packing:
    """Where the processes are."""

    cards: list[list[str]]
    """The roles of the processes on each GPU."""
    unplaced: Ask | None
    """The first process without a place; None if each has one."""


class Node:
    """The GPUs of a node: what is left of each, and the roles of the processes that have a part of it."""

    def __init__(self, gpus: int) -> None:
        self.left, self.roles = [1.0] * gpus, [list[str]() for _ in range(gpus)]

    def take(self, role: str, gpus: float) -> bool:
        """Give a process its GPUs. Returns whether the cards had room."""
        share, cards = min(gpus, 1.0), ceil(gpus)
        room = sorted((left, card) for card, left in enumerate(self.left) if left + TINY >= share)[:cards]
        if len(room) < cards:
            return False
        for _, card in room:
            self.left[card] -= share
            self.roles[card].append(role)
        return True


def no_place(ask: Ask, gpus: int) -> str:
    """Why a process has no place on so many GPUs, although what all processes ask for is not more."""
    return (
        f"Ray finds no place for {ask.role} with {ask.gpus:g} of a GPU on {gpus} GPUs: it chooses a node by the sum of "
        "its GPUs, and a fraction must be left on one of them"
    )


def nodes_of(gpus: int) -> list[int]:
    """The GPUs of each node: full nodes, and one with the rest."""
    full, rest = divmod(gpus, NODE_GPUS)
    return [NODE_GPUS] * full + [rest] * (rest > 0)


def pack(group: Sequence[Ask], replicas: Iterable[Ask], nodes: Iterable[int]) -> Packing:
    """Places the processes of the placement group, in its order, and then the replicas of the scorers.

    Args:
        nodes: the GPUs of each node, the largest first.
    """
    free = [Node(gpus) for gpus in nodes]
    unplaced = list(_grouped(group, free))
    for ask in replicas:
        most_left = sorted(free, key=lambda node: -sum(node.left))
        if ask.gpus and not any(node.take(ask.role, ask.gpus) for node in most_left):
            unplaced.append(ask)
    return Packing([roles for node in free for roles in node.roles], unplaced[0] if unplaced else None)


def _grouped(group: Sequence[Ask], free: Sequence[Node]) -> Iterable[Ask]:
    """Places a placement group. Gives the processes without a place."""
    waiting = sorted((i for i, ask in enumerate(group) if ask.gpus), key=lambda i: -group[i].gpus)
    for node in free:
        total = float(len(node.left))
        sent: list[int] = []
        for i in waiting:
            if group[i].gpus <= total + TINY:
                total -= group[i].gpus
                sent.append(i)
        waiting = [i for i in waiting if i not in sent]
        yield from (group[i] for i in sorted(sent) if not node.take(group[i].role, group[i].gpus))
    yield from (group[i] for i in waiting)


def fewest(group: Sequence[Ask], replicas: Sequence[Ask]) -> int:
    """The smallest number of GPUs that has a place for each process; if none has, the sum of what they ask for."""
    asked = [ask.gpus for ask in (*group, *replicas)]
    least = ceil(sum(asked) - TINY)
    counts = range(least, sum(map(ceil, asked)) + 1)
    return next((gpus for gpus in counts if not pack(group, replicas, nodes_of(gpus)).unplaced), least)
