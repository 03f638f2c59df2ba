"""Assigns waiting jobs to workers of different speeds. It uses no Ray, no threads and no clock.

Shape legend: S slots.
"""

import math
from bisect import bisect
from enum import IntEnum

import numpy as np

TRY_AGAIN_AFTER = 10
"""After this many of its own job times without work, a slow worker is given one job to measure it again."""

MIN_S = 1e-6
"""The least time that a job is assumed to take, so that no worker seems infinitely fast."""


class SlotState(IntEnum):
    """The state of a slot's worker.

    - STARTING → FREE: it has loaded its model.
    - FREE ⇄ BUSY: it begins a job, or has finished one.
    - FREE or BUSY → LEAVING: its node is being drained.
    - Every state → STARTING: it died, hangs or has left, and the slot gets a new worker.
    """

    STARTING = 0
    """The worker is loading its model."""
    FREE = 1
    BUSY = 2
    LEAVING = 3
    """The worker gets no further job, and ends once it has none."""


class Assigner:
    """List scheduling by the earliest answer.

    Waiting jobs are assumed to take equally long. Each in turn is planned for the worker that would answer it first,
    even if that worker must finish another job before. A slow worker gets a job only if no other worker would finish it
    sooner.

    A worker of unknown speed gets a job at once. If a worker takes longer than before, it is assumed to be that slow
    from then on, because it may hang.

    A decision costs O(slots) in NumPy, whatever the number of waiting jobs.

    Args:
        slots: the number of slots. All of them begin as STARTING.
    """

    def __init__(self, slots: int) -> None:
        self.state_S = np.full(slots, SlotState.STARTING)
        self._free: set[int] = set()
        self._seconds_S = np.full(slots, math.nan)
        """The seconds that each worker took for its last job; NaN if unknown."""
        self._began_S = np.zeros(slots)
        self._ended_S = np.zeros(slots)

    def joins(self, slot: int) -> None:
        """A new worker of unknown speed is free."""
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
            typical: whether the job was like the waiting ones, so that its time measures the worker's speed.
        """
        if typical:
            self._seconds_S[slot], self._ended_S[slot] = now - self._began_S[slot], now
        if self.state_S[slot] == SlotState.BUSY:
            self._set(slot, SlotState.FREE)

    def takers(self, waiting: int, now: float) -> dict[int, int]:
        """The free slots that take a job now, each with the index of its job among the waiting ones.

        A slow worker does not take the first job if a faster worker would answer it sooner. It takes a later job.
        """
        if not waiting or not self._free:
            return {}
        free = np.fromiter(self._free, np.int64, len(self._free))
        busy = np.flatnonzero((self.state_S == SlotState.BUSY) & ~np.isnan(self._seconds_S))
        first_S, then_S = self._estimates(free, busy, now)
        counted = np.concatenate([free, busy])
        first, then = first_S[counted], np.maximum(then_S[counted], MIN_S)

        def answered_before(slot: int) -> float:
            """The number of jobs that all workers together would answer before this worker answers its first."""
            left = first_S[slot] - first
            return float(np.where(left > 0, np.maximum(1, np.ceil(left / then)), 0).sum())

        order = free[np.lexsort((free, first_S[free]))][:waiting].tolist()
        if answered_before(order[-1]) >= waiting:
            order = order[: bisect(order, waiting - 0.5, key=answered_before)]
        if not order or first_S[order[-1]] == 0 or answered_before(order[-1]) == len(order) - 1:
            # No other worker would take one of these jobs first.
            return {slot: index for index, slot in enumerate(order)}
        takers: dict[int, int] = {}
        index = -1
        for slot in order:
            index = max(int(answered_before(slot)), index + 1)
            if index >= waiting:
                break
            takers[slot] = index
        return takers

    def _estimates(self, free: np.ndarray, busy: np.ndarray, now: float) -> tuple[np.ndarray, np.ndarray]:
        """The seconds until each worker would answer its next job, (S,), and those between its further answers, (S,).

        A free worker of unknown speed counts as one that answers at once, and then nothing more.

        Args:
            free: the slots of free workers.
            busy: the slots of busy workers of known speed.
        """
        first_S, then_S = np.zeros_like(self._seconds_S), np.full_like(self._seconds_S, math.inf)
        known = free[~np.isnan(self._seconds_S[free])]
        seconds = self._seconds_S[known]
        first_S[known] = np.where(now - self._ended_S[known] > TRY_AGAIN_AFTER * seconds, 0, seconds)
        then_S[known] = seconds
        elapsed = now - self._began_S[busy]
        then_S[busy] = np.maximum(self._seconds_S[busy], elapsed)
        first_S[busy] = 2 * then_S[busy] - elapsed
        return first_S, then_S

    def _set(self, slot: int, state: SlotState) -> None:
        self.state_S[slot] = state
        if state == SlotState.FREE:
            self._free.add(slot)
        else:
            self._free.discard(slot)
