"""Which worker takes which of the waiting jobs, where some are slower than others."""

import heapq
from collections.abc import Collection, Mapping
from typing import NamedTuple


class Pace(NamedTuple):
    """What is expected of a worker."""

    first_s: float
    """Until it answers the next job that it is given."""
    then_s: float
    """From each answer to the one after it."""


def dispatch(waiting: int, paces: Mapping[int, Pace], free: Collection[int]) -> dict[int, int]:
    """List scheduling by the earliest answer: each job in its order goes to the worker that would answer it first, be
    it one that has yet to finish another. A slow worker so gets a job that the others are long in coming to, or none.

    Args:
        waiting: jobs, first come first served, taken to be alike.
        paces: of the workers, by slot.
        free: slots of those that may begin now.

    Returns:
        Index of the job that each free worker takes now, by slot; those that had better wait for more are left out.
    """
    answers = [(pace.first_s, slot) for slot, pace in paces.items()]
    heapq.heapify(answers)
    taken: dict[int, int] = {}
    for index in range(waiting):
        if len(taken) == len(free):
            break
        answer_s, slot = answers[0]
        if slot in free:
            taken.setdefault(slot, index)
        heapq.heapreplace(answers, (answer_s + paces[slot].then_s, slot))
    return taken
