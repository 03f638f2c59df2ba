"""The rollout workers on Ray: gives jobs to them, returns futures of the answers, and replaces dead workers."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as Late
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError

from actors.lost import Lost
from actors.policy.weights import Exported
from actors.rollout.assigner import Assigner, SlotState
from actors.rollout.images import ByteBudget, Images
from actors.rollout.jobs import Attempt, Job, JobState, Slot
from actors.rollout.plans.plan import Plan
from actors.rollout.results import Generated, RolloutStatus, Sampled
from actors.rollout.sampling import Sampling, image_bytes
from actors.trajectory import Task
from services.base.errors import UserError, death, first_line, refusal
from services.base.futures import cancel

log = logging.getLogger(__name__)

POLL_S = 0.5
"""The longest time between two checks of timeouts, of nodes, and of whether a slow worker should get a job."""
LOOK_S = 1.0
"""Seconds between two checks of the nodes."""
SMALL_RESULT_TIMEOUT_S = 120
IMAGES_TIMEOUT_S = 120
MAX_DEATHS_PER_JOB = 3
MAX_DEATHS_AT_START = 3


class Fleet:
    """Rollouts on Ray: slots for workers, and a thread that gives waiting jobs to free workers.

    Jobs are given out in order, as `Assigner` decides. If a worker does not have the weights of a job, they are sent
    with the job. If a worker dies or hangs, its job runs again on another worker, and its slot gets a new worker, which
    takes jobs once it has loaded its model. A worker on a node that is being drained (`ray drain-node`, a spot node)
    finishes its job, gets no other job, and ends.

    One thread owns all state. Other threads only put requests into its inbox. The thread has no lock when it resolves a
    future, so the callbacks of a future may call the fleet. Every future is resolved: with a result, with an error, or
    as cancelled when the fleet closes.

    Args:
        start_worker: makes the worker of a slot. The worker may wait for a place on the cluster.
        slots: the number of workers that the run needs to begin.
        task_timeout_s: seconds after which a job counts as lost and its worker is replaced.
        image_bytes: bytes of one image.
        bytes_in_flight: the most bytes of images that are being generated or wait for scores.
        alive: running workers by slot. If one dies while it starts, the fleet waits for `adopt` to replace it.
        more: the number of further slots. Their workers join while the cluster has room, and may leave.
        start_timeout_s: seconds that jobs may wait while there is no worker at all.
        look: returns the ids of the nodes that are being drained. An error that it raises ends the run.
        end_worker: ends a worker's process.
    """

    def __init__(
        self,
        start_worker: Callable[[int], ActorHandle],
        slots: int,
        task_timeout_s: float,
        *,
        image_bytes: int,
        bytes_in_flight: int,
        alive: Mapping[int, ActorHandle] | None = None,
        more: int = 0,
        start_timeout_s: float = 900,
        look: Callable[[], Collection[str]] = list,
        end_worker: Callable[[ActorHandle], None] = ray.kill,
    ) -> None:
        self.task_timeout_s, self.start_timeout_s, self.image_bytes = task_timeout_s, start_timeout_s, image_bytes
        self.replaced = 0
        self._start_worker, self._end_worker, self._look = start_worker, end_worker, look
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closed = False
        self._door = threading.Lock()
        """The lock for adding a job to the inbox and for closing, so that no job is left in a closed fleet's inbox."""
        self.budget = ByteBudget(bytes_in_flight, partial(self._inbox.put, _nothing))
        self._assigner = Assigner(slots + more)
        self._waiting: deque[Job] = deque()
        self._running: dict[Attempt, None] = {}
        """The jobs on workers, in the order of their start."""
        self._needed = set(range(slots))
        """The slots that the run needs to begin and whose workers have not loaded their model yet."""
        self._ready: Future[None] = Future()
        self._next_look = 0.0
        self._last_seen = time.monotonic()
        """The last time at which there was a worker or no job was waiting."""
        self._given = dict(alive or {})
        self._slots = [self._new_slot(number, 1) for number in range(slots + more)]
        self._thread = threading.Thread(target=self._serve, name="fleet", daemon=True)
        self._thread.start()

    # What other threads call.

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

    def adopt(self, workers: Mapping[int, ActorHandle]) -> None:
        """Put running workers into their slots. Jobs that are submitted later can use them."""
        nodes = ray.get([worker.ready.remote() for worker in workers.values()], timeout=SMALL_RESULT_TIMEOUT_S)
        for (number, worker), node in zip(workers.items(), nodes, strict=True):
            self._inbox.put(partial(self._adopt, number, worker, node))

    def generate(self, task: Task, plan: Plan, weights: Exported) -> Future[Generated]:
        """Run a task with its plan."""
        num_bytes = plan.leaves * self.image_bytes

        def answer(refs: list[ObjectRef], read: Any) -> Generated:
            return Generated(task, refs[0], read.tree, self._images(refs[1], num_bytes), read.finite_M, read.cost)

        return self._submit(Job(lambda worker: worker.generate.remote(task, plan), answer, weights, num_bytes, True))

    def sample(
        self,
        prompts: list[str],
        addresses: Sequence[tuple[int, ...]],
        sampling: Sampling,
        weights: Exported | None = None,
    ) -> Future[Sampled]:
        """Generate deterministic images, one for each prompt.

        Args:
            weights: the weights to sample from; None if the base model takes all steps, so that any weights will do.
        """
        assert weights is not None or not sampling.policy_steps, "the policy has no weights for its steps"
        num_bytes = len(prompts) * image_bytes(sampling)

        def start(worker: ActorHandle) -> list[ObjectRef]:
            return worker.sample.remote(prompts, addresses, sampling)

        def answer(refs: list[ObjectRef], read: Any) -> Sampled:
            return Sampled(self._images(refs[0], num_bytes), read)

        return self._submit(Job(start, answer, weights, num_bytes, False))

    def cancel(self) -> None:
        """Cancel the jobs that have not been given to a worker."""
        self._inbox.put(self._cancel)

    def take_peak_bytes(self) -> int:
        """The most bytes of images in flight at once since the last call."""
        return self.budget.take_peak()

    def status(self) -> RolloutStatus:
        slots = self._joined()
        held = {slot.number: slot.held.version for slot in slots if slot.held is not None}
        return RolloutStatus(len(slots), self.replaced, held)

    @property
    def workers(self) -> dict[int, ActorHandle]:
        """The workers that have loaded their model, by their slot."""
        return {slot.number: slot.worker for slot in self._joined()}

    def close(self) -> None:
        """Cancel all unfinished jobs, and end the workers."""
        self._inbox.put(self._close)
        self._thread.join(SMALL_RESULT_TIMEOUT_S)
        for slot in self._slots:
            self._end_worker(slot.worker)

    def _joined(self) -> list[Slot]:
        return [slot for slot in self._slots if self._assigner.state_S[slot.number] != SlotState.STARTING]

    def _submit(self, job: Job) -> Future[Any]:
        with self._door:
            is_open = not self._closed
            if is_open:
                self._inbox.put(partial(self._accept, job))
        if not is_open:
            cancel(job.future)
        return job.future

    def _images(self, ref: ObjectRef, num_bytes: int) -> Images:
        return Images(ref, num_bytes, self.budget, _fetched)

    # What only the fleet's thread calls.

    def _serve(self) -> None:
        """Handle requests and give out jobs until the fleet closes. An unexpected error ends every unfinished job."""
        while not (self._closed and self._inbox.empty()):
            try:
                self._handle_requests()
                now = time.monotonic()
                self._give_out(now)
                self._look_after_time(now)
                self._look_after_nodes(now)
            except (Exception, SystemExit) as error:  # Ray raises SystemExit when the driver's node is lost.
                log.warning("all rollout jobs fail: %s", first_line(error))
                self._fail_all(error)
                if isinstance(error, SystemExit):
                    self._close()
        if not self._ready.done():
            self._ready.set_exception(RuntimeError("the fleet is closed"))

    def _handle_requests(self) -> None:
        """Handle the requests in the inbox, or wait for one. If one raises, the others stay in the inbox."""
        try:
            request = self._inbox.get(timeout=POLL_S)
        except Empty:
            return
        request()
        for _ in range(self._inbox.qsize()):
            self._inbox.get_nowait()()

    def _accept(self, job: Job) -> None:
        if self._closed:
            self._finish_cancelled(job)
            return
        if not self._waiting and not self._running:
            self._last_seen = time.monotonic()
        self._waiting.append(job)

    def _give_out(self, now: float) -> None:
        takers = self._assigner.takers(len(self._waiting), now)
        jobs = [self._waiting[index] for index in takers.values()]
        for number, job in zip(takers, jobs, strict=True):
            if job.state is JobState.WAITING:
                if not self.budget.reserve(job.num_bytes):
                    return
                job.state = JobState.WAITING_AGAIN  # It keeps its bytes, even if its start fails.
            self._start(job, self._slots[number], now)
            self._waiting.remove(job)

    def _start(self, job: Job, slot: Slot, now: float) -> None:
        confirmation = None
        if job.weights is not None and slot.held != job.weights.label:
            confirmation = slot.worker.load.remote(job.weights.label, *job.weights.buckets)
        refs = job.start(slot.worker)
        attempt = Attempt(job, slot, refs, confirmation, now)
        self._running[attempt] = None
        job.state = JobState.RUNNING
        self._assigner.begins(slot.number, now)
        refs[-1].future().add_done_callback(lambda read: self._inbox.put(partial(self._answered, attempt, read)))

    def _answered(self, attempt: Attempt, read: Future[Any]) -> None:
        if attempt not in self._running:  # The fleet has given up on the job.
            self._free(attempt, typical=False)
            return
        del self._running[attempt]
        result: Any = None
        error: BaseException | None = None
        try:
            if attempt.confirmation is not None:
                self._confirm(attempt)
            result = attempt.job.answer(attempt.refs, read.result())
        except RayActorError as dead:
            self._lost(attempt, dead)
            return
        except (Exception, SystemExit) as raised:
            error = Lost(first_line(raised)) if isinstance(raised, ObjectLostError) else raised
        try:
            self._free(attempt, attempt.job.typical and error is None)
        finally:  # Also if no worker can be started in the place of one that leaves.
            self._finish(attempt.job, result, error)
        if isinstance(error, SystemExit):
            raise error

    def _confirm(self, attempt: Attempt) -> None:
        """Check that the worker has loaded the weights that it was sent, and record it.

        Raises:
            RuntimeError: the worker has other weights.
        """
        assert attempt.job.weights is not None
        assert attempt.confirmation is not None
        label = attempt.job.weights.label
        answer = attempt.confirmation.future().result(SMALL_RESULT_TIMEOUT_S)
        if answer != (label.version, label.checksum):
            raise RuntimeError(f"a rollout worker confirmed weights {answer}, not {label}")
        attempt.slot.held = label

    def _free(self, attempt: Attempt, typical: bool) -> None:
        """Mark the worker of an attempt as free, or end it if it leaves; neither if its slot has another one by now."""
        slot = attempt.slot
        if self._slots[slot.number] is not slot:
            return
        self._assigner.ends(slot.number, time.monotonic(), typical)
        if self._assigner.state_S[slot.number] == SlotState.LEAVING:
            self._leave(slot)

    def _finish(self, job: Job, result: Any = None, error: BaseException | None = None) -> None:
        """Resolve a job's future. Its bytes are released, unless its images own them."""
        holds = job.state is not JobState.WAITING
        job.state = JobState.DONE
        if error is not None and holds:
            self.budget.release(job.num_bytes)
        try:
            if error is not None:
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
        except InvalidStateError:  # The caller has cancelled it.
            if error is None:
                result.images.release()

    def _lost(self, attempt: Attempt, why: Exception) -> None:
        """Let the job wait for another worker. The slot gets a new worker, unless it has one by now."""
        job = attempt.job
        job.deaths += 1
        if job.deaths >= MAX_DEATHS_PER_JOB:
            many = RuntimeError(f"{MAX_DEATHS_PER_JOB} rollout workers died on one task; the last one: {why}")
            many.__cause__ = why
            self._finish(job, error=many)
        else:
            job.state = JobState.WAITING_AGAIN
            self._waiting.appendleft(job)
        if self._slots[attempt.slot.number] is attempt.slot:
            log.warning("rollout worker %d is replaced: %s", attempt.slot.number, first_line(why))
            self.replaced += 1
            self._vacate(attempt.slot)

    def _vacate(self, slot: Slot) -> None:
        """End a worker, and start another one in its slot."""
        self._end_worker(slot.worker)
        self._slots[slot.number] = self._new_slot(slot.number, 1)

    def _leave(self, slot: Slot) -> None:
        log.info("rollout worker %d leaves a node that is being drained", slot.number)
        self._vacate(slot)

    def _new_slot(self, number: int, starts: int) -> Slot:
        """Make a slot, with a worker that begins to load its model."""
        given = self._given.pop(number, None)
        slot = Slot(number, given or self._start_worker(number), starts, adopted=given is not None)
        self._assigner.starts(number)
        ready = slot.worker.ready.remote().future()
        ready.add_done_callback(lambda node: self._inbox.put(partial(self._welcome, slot, node)))
        return slot

    def _welcome(self, slot: Slot, node: Future[str]) -> None:
        """Handle a worker's start: it takes jobs if it has loaded its model, and is started again if it has died."""
        if self._slots[slot.number] is not slot:
            return  # Another worker was adopted into the slot.
        error = node.exception()
        if error is None:
            slot.node = node.result()
            self._join(slot)
            return
        if slot.adopted:
            return
        needed = slot.number in self._needed
        if needed and (said := refusal(error)):
            self._not_ready(said, error)
        elif needed and slot.starts >= MAX_DEATHS_AT_START:
            said = UserError(
                f"rollout worker {slot.number} died {slot.starts} times as it started: {death(error)}; see its log "
                f"(logs/rollout-{slot.number}.log)"
            )
            self._not_ready(said, error)
        else:
            log.warning("rollout worker %d died as it started: %s", slot.number, death(error))
            self._slots[slot.number] = self._new_slot(slot.number, slot.starts + 1)

    def _join(self, slot: Slot) -> None:
        self._assigner.joins(slot.number)
        self._needed.discard(slot.number)
        if not self._needed and not self._ready.done():
            self._ready.set_result(None)

    def _not_ready(self, said: UserError, cause: BaseException) -> None:
        if not self._ready.done():
            said.__cause__ = cause
            self._ready.set_exception(said)

    def _adopt(self, number: int, worker: ActorHandle, node: str) -> None:
        slot = Slot(number, worker, adopted=True, node=node)
        self._slots[number] = slot
        self._join(slot)

    def _look_after_time(self, now: float) -> None:
        """Treat jobs that take too long as lost.

        Raises:
            RuntimeError: jobs are waiting, and there was no worker for `start_timeout_s` seconds.
        """
        while self._running and now > (attempt := next(iter(self._running))).began + self.task_timeout_s:
            del self._running[attempt]
            self._lost(attempt, TimeoutError(f"no answer within {self.task_timeout_s:g} s"))
        if not self._waiting or self._running or self._joined():
            self._last_seen = now
        elif now - self._last_seen > self.start_timeout_s:
            raise RuntimeError(f"no rollout worker for {self.start_timeout_s:g} s")

    def _look_after_nodes(self, now: float) -> None:
        """Find workers on nodes that are being drained. They take no further job, and end once they have none."""
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        draining = self._look()
        for slot in self._joined():
            if slot.node not in draining:
                continue
            is_free = self._assigner.state_S[slot.number] == SlotState.FREE
            self._assigner.leaves(slot.number)
            if is_free:
                self._leave(slot)

    def _cancel(self) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            self._finish_cancelled(job)

    def _finish_cancelled(self, job: Job) -> None:
        if job.state is not JobState.WAITING:
            self.budget.release(job.num_bytes)
        job.state = JobState.DONE
        cancel(job.future)

    def _fail_all(self, error: BaseException) -> None:
        unfinished = [*self._waiting, *(attempt.job for attempt in self._running)]
        self._waiting.clear()
        self._running.clear()
        for job in unfinished:
            if job.state is not JobState.DONE:
                self._finish(job, error=error)

    def _close(self) -> None:
        with self._door:
            self._closed = True
        self._cancel()
        for attempt in self._running:
            self._finish_cancelled(attempt.job)
        self._running.clear()


def _fetched(ref: ObjectRef) -> np.ndarray:
    """The images behind a reference.

    Raises:
        Lost: they are lost with their node.
    """
    try:
        return ray.get(ref, timeout=IMAGES_TIMEOUT_S)
    except ObjectLostError as error:
        raise Lost(first_line(error)) from error


def _nothing() -> None:
    """An empty request, which wakes the fleet's thread because the byte budget may have room."""
