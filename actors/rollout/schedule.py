"""Which workers take the next jobs, where some workers are slower than others. No Ray, no threads, no clock."""

import math
from bisect import bisect
from enum import IntEnum

import numpy as np

TRY_AGAIN_AFTER = 10
"""After this many of its own job times without work, a slow worker is given one job to measure it again."""

MIN_S = 1e-6
"""A job takes this long at least, so that no worker is believed to answer infinitely often."""


class SlotState(IntEnum):
    """What the worker of a slot does."""

    STARTING = 0
    """It loads its model."""
    FREE = 1
    BUSY = 2
    LEAVING = 3
    """It gets no further job."""


class Schedule:
    """List scheduling by the earliest answer.

    Waiting jobs, which are taken to be alike, go in their order to the worker that would answer first, even if that
    worker has to finish another job before. A slow worker gets a job only if no other worker would finish it sooner.

    A worker whose pace is not known gets a job at once. A worker that takes longer than it took before is believed to
    be that slow from then on, since it may hang.

    The cost of a decision is O(slots) in NumPy, whatever the number of waiting jobs.

    Args:
        slots: the number of slots; all of them are STARTING.
    """

    def __init__(self, slots: int) -> None:
        self.state_S = np.full(slots, SlotState.STARTING)
        self._free: set[int] = set()
        self._seconds_S = np.full(slots, math.nan)
        """How long each worker took for its last job; NaN if that is not known."""
        self._began_S = np.zeros(slots)
        self._ended_S = np.zeros(slots)

    def joins(self, slot: int) -> None:
        """A worker that nothing is known of is free."""
        self._seconds_S[slot] = math.nan
        self._set(slot, SlotState.FREE)

    def starts(self, slot: int) -> None:
        """A slot waits for a new worker."""
        self._set(slot, SlotState.STARTING)

    def leaves(self, slot: int) -> None:
        """The worker of a slot gets no further job."""
        self._set(slot, SlotState.LEAVING)

    def begins(self, slot: int, now: float) -> None:
        """A free worker begins a job."""
        assert slot in self._free, f"slot {slot} is not free"
        self._began_S[slot] = now
        self._set(slot, SlotState.BUSY)

    def ends(self, slot: int, now: float, typical: bool) -> None:
        """A busy worker has finished its job.

        Args:
            typical: whether the job says how fast the worker is: it was alike those that wait.
        """
        if typical:
            self._seconds_S[slot], self._ended_S[slot] = now - self._began_S[slot], now
        if self.state_S[slot] == SlotState.BUSY:
            self._set(slot, SlotState.FREE)

    def takers(self, waiting: int, now: float) -> dict[int, int]:
        """The free slots that take a job now, each with the index of its job among those that wait.

        A slow worker takes a job that the others would come to late, not the first one, for which others wait.
        """
        if not waiting or not self._free:
            return {}
        free = np.fromiter(self._free, np.int64, len(self._free))
        known_S = ~np.isnan(self._seconds_S)
        first_S, then_S = np.zeros(len(known_S)), np.full(len(known_S), math.inf)
        """Seconds until each would answer the next job that it is given, and from each answer to the one after it."""
        idle = free[known_S[free]]
        seconds = self._seconds_S[idle]
        first_S[idle] = np.where(now - self._ended_S[idle] > TRY_AGAIN_AFTER * seconds, 0, seconds)
        then_S[idle] = seconds
        busy = np.flatnonzero((self.state_S == SlotState.BUSY) & known_S)
        elapsed = now - self._began_S[busy]
        then_S[busy] = np.maximum(self._seconds_S[busy], elapsed)
        first_S[busy] = 2 * then_S[busy] - elapsed
        counted = np.concatenate([free, busy])
        first, then = first_S[counted], np.maximum(then_S[counted], MIN_S)

        def answered_before(slot: int) -> float:
            """Jobs that all workers together would answer before this one answers its first."""
            left = first_S[slot] - first
            return float(np.where(left > 0, np.maximum(1, np.ceil(left / then)), 0).sum())

        order = free[np.lexsort((free, first_S[free]))][:waiting].tolist()
        if answered_before(order[-1]) >= waiting:
            order = order[: bisect(order, waiting - 0.5, key=answered_before)]
        if not order or first_S[order[-1]] == 0 or answered_before(order[-1]) == len(order) - 1:
            return {slot: index for index, slot in enumerate(order)}  # No other worker comes to a job before them.
        takers: dict[int, int] = {}
        index = -1
        for slot in order:
            index = max(int(answered_before(slot)), index + 1)
            if index >= waiting:
                break
            takers[slot] = index
        return takers

    def _set(self, slot: int, state: SlotState) -> None:
        self.state_S[slot] = state
        if state == SlotState.FREE:
            self._free.add(slot)
        else:
            self._free.discard(slot)
