"""The slots of a fleet: starts a worker in each, replaces it when it dies, and ends it when its node is drained."""

import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from functools import partial

from ray.actor import ActorHandle

from actors.policy.weights import Label
from actors.rollout.assigner import Assigner, SlotState
from services.base.errors import UserError, death, first_line, refusal

log = logging.getLogger(__name__)

MAX_DEATHS_AT_START = 3


@dataclass(eq=False)
class Slot:
    """A place for one worker, with its present worker. The next worker of the place gets a new object."""

    number: int
    worker: ActorHandle
    starts: int = 1
    """How often in a row a worker of this slot was started."""
    adopted: bool = False
    """Whether the fleet was given the worker. If it dies as it starts, the fleet will be given another one."""
    node: str = ""
    """The id of the worker's node; empty until the worker has loaded its model."""
    held: Label | None = None
    """The weights that the worker has confirmed."""


class Slots:
    """The slots of a fleet. `SlotState` says what becomes of a worker.

    Only the fleet's thread calls the methods, except `wait_ready` and `joined`. Nothing here waits for a worker: news
    of its start reaches the thread by `post`.

    Args:
        start_worker: makes the worker of a slot. The worker may wait for a place on the cluster.
        end_worker: ends a worker's process.
        needed: the number of workers that the run needs to begin.
        more: the number of further slots.
        post: lets the fleet's thread call a function.
        alive: running workers by slot. If one dies while it starts, `adopt` will replace it.
    """

    def __init__(
        self,
        start_worker: Callable[[int], ActorHandle],
        end_worker: Callable[[ActorHandle], None],
        needed: int,
        more: int,
        post: Callable[[Callable[[], None]], None],
        alive: Mapping[int, ActorHandle],
    ) -> None:
        self.replaced = 0
        self._start_worker, self._end_worker, self._post = start_worker, end_worker, post
        self._assigner = Assigner(needed + more)
        self._needed = set(range(needed))
        """The slots that the run needs to begin and whose workers have not loaded their model yet."""
        self._ready: Future[None] = Future()
        self._alive = dict(alive)
        self._slots = [self._new_slot(number, starts=1) for number in range(needed + more)]

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the workers that the run needs have loaded their model.

        Raises:
            UserError: a worker refuses to start, died for the third time as it started, or is late.
        """
        try:
            self._ready.result(timeout_s)
        except Late as late:
            if self._ready.done():
                raise
            late_ones = ", ".join(map(str, sorted(self._needed.copy())))
            raise UserError(
                f"rollout workers {late_ones} have not started within {timeout_s:g} s; "
                "see their logs (logs/rollout-*.log), and raise ray.start_timeout_s if the model takes longer to load"
            ) from late

    def not_ready(self, error: Exception) -> None:
        """Let `wait_ready` raise this error, unless it has an answer already."""
        if not self._ready.done():
            self._ready.set_exception(error)

    def joined(self) -> list[Slot]:
        """The slots whose workers have loaded their model."""
        return [slot for slot in self._slots if self._assigner.state_S[slot.number] != SlotState.STARTING]

    def takers(self, waiting: int, now: float) -> dict[Slot, int]:
        """The slots that take a job now, each with the index of its job among the waiting ones."""
        return {self._slots[number]: index for number, index in self._assigner.takers(waiting, now).items()}

    def begins(self, slot: Slot, now: float) -> None:
        """A worker begins a job."""
        self._assigner.begins(slot.number, now)

    def ends(self, slot: Slot, now: float, typical: bool) -> None:
        """A worker has ended its job. This changes nothing if the slot has another worker by now.

        Args:
            typical: whether the time of the job measures the worker's speed.
        """
        if not self._is_present(slot):
            return
        self._assigner.ends(slot.number, now, typical)
        if self._assigner.state_S[slot.number] == SlotState.LEAVING:
            self._leave(slot)

    def lost(self, slot: Slot, why: Exception) -> None:
        """Replace a worker that died or hangs, unless the slot has another worker by now."""
        if self._is_present(slot):
            log.warning("rollout worker %d is replaced: %s", slot.number, first_line(why))
            self.replaced += 1
            self._replace(slot)

    def drain(self, nodes: Collection[str]) -> None:
        """Let the workers on these nodes take no further job. Each one ends once it has no job."""
        for slot in self.joined():
            if slot.node not in nodes:
                continue
            is_free = self._assigner.state_S[slot.number] == SlotState.FREE
            self._assigner.leaves(slot.number)
            if is_free:
                self._leave(slot)

    def adopt(self, number: int, worker: ActorHandle, node: str) -> None:
        """Put a running worker into a slot."""
        slot = Slot(number, worker, adopted=True, node=node)
        self._slots[number] = slot
        self._join(slot)

    def end_workers(self) -> None:
        for slot in self._slots:
            self._end_worker(slot.worker)

    def _new_slot(self, number: int, starts: int) -> Slot:
        """Make a slot, with a worker that begins to load its model."""
        given = self._alive.pop(number, None)
        slot = Slot(number, given or self._start_worker(number), starts, adopted=given is not None)
        self._assigner.starts(number)
        ready = slot.worker.ready.remote().future()
        ready.add_done_callback(lambda node: self._post(partial(self._started, slot, node)))
        return slot

    def _started(self, slot: Slot, node: Future[str]) -> None:
        """Handle a worker's start: it takes jobs if it has loaded its model, and is started again if it has died."""
        if not self._is_present(slot):
            return
        error = node.exception()
        if error is None:
            slot.node = node.result()
            self._join(slot)
        elif not slot.adopted:
            self._died_at_start(slot, error)

    def _join(self, slot: Slot) -> None:
        self._assigner.joins(slot.number)
        self._needed.discard(slot.number)
        if not self._needed and not self._ready.done():
            self._ready.set_result(None)

    def _died_at_start(self, slot: Slot, error: BaseException) -> None:
        """Start a worker again, or give up if the run needs it and another start would not help."""
        said = None
        if slot.number in self._needed:
            said = refusal(error)
            if said is None and slot.starts >= MAX_DEATHS_AT_START:
                said = UserError(
                    f"rollout worker {slot.number} died {slot.starts} times as it started: {death(error)}; see its log "
                    f"(logs/rollout-{slot.number}.log)"
                )
        if said is None:
            log.warning("rollout worker %d died as it started: %s", slot.number, death(error))
            self._slots[slot.number] = self._new_slot(slot.number, slot.starts + 1)
        else:
            said.__cause__ = error
            self.not_ready(said)

    def _leave(self, slot: Slot) -> None:
        log.info("rollout worker %d leaves a node that is being drained", slot.number)
        self._replace(slot)

    def _replace(self, slot: Slot) -> None:
        """End a worker, and start another one in its slot."""
        self._end_worker(slot.worker)
        self._slots[slot.number] = self._new_slot(slot.number, starts=1)

    def _is_present(self, slot: Slot) -> bool:
        """Whether the slot has no other worker by now."""
        return self._slots[slot.number] is slot
