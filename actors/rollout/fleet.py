"""The rollout workers on Ray: gives jobs to them, returns futures of the answers, and replaces dead workers."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
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
from actors.rollout.images import ByteBudget, Images
from actors.rollout.jobs import Attempt, Job, Jobs
from actors.rollout.plans.plan import Plan
from actors.rollout.results import Generated, RolloutStatus, Sampled
from actors.rollout.sampling import Sampling, image_bytes
from actors.rollout.slots import Slot, Slots
from actors.trajectory import Task
from services.base.errors import first_line
from services.base.futures import cancel

log = logging.getLogger(__name__)

POLL_S = 0.5
"""The longest time between two checks of timeouts, of nodes, and of whether a slow worker should get a job."""
LOOK_S = 1.0
"""Seconds between two checks of the nodes."""
SMALL_RESULT_TIMEOUT_S = 120
IMAGES_TIMEOUT_S = 120


class Fleet:
    """Rollouts on Ray: jobs, slots for workers, and a thread that gives waiting jobs to free workers.

    `Jobs` says what becomes of a job, `Slots` what becomes of a worker, and `Assigner` which worker takes which job. If
    a worker does not have the weights of a job, they are sent with the job. If a worker dies or hangs, its job runs
    again on another worker, and its slot gets a new worker, which takes jobs once it has loaded its model. A worker on
    a node that is being drained (`ray drain-node`, a spot node) finishes its job, gets no other job, and ends.

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
        self._look = look
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._closed = False
        self._door = threading.Lock()
        """The lock for adding a job to the inbox and for closing, so that no job is left in a closed fleet's inbox."""
        self.budget = ByteBudget(bytes_in_flight, partial(self._inbox.put, _nothing))
        self._jobs = Jobs(self.budget)
        self._slots = Slots(start_worker, end_worker, slots, more, self._inbox.put, alive or {})
        self._next_look = 0.0
        self._last_seen = time.monotonic()
        """The last time at which there was a worker or no job was waiting."""
        self._thread = threading.Thread(target=self._serve, name="fleet", daemon=True)
        self._thread.start()

    # What other threads call.

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the workers that the run needs have loaded their model.

        Raises:
            UserError: a worker refuses to start, died for the third time as it started, or is late.
        """
        self._slots.wait_ready(timeout_s)

    def adopt(self, workers: Mapping[int, ActorHandle]) -> None:
        """Put running workers into their slots. Jobs that are submitted later can use them."""
        nodes = ray.get([worker.ready.remote() for worker in workers.values()], timeout=SMALL_RESULT_TIMEOUT_S)
        for (number, worker), node in zip(workers.items(), nodes, strict=True):
            self._inbox.put(partial(self._slots.adopt, number, worker, node))

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
        self._inbox.put(self._jobs.cancel_waiting)

    def take_peak_bytes(self) -> int:
        """The most bytes of images in flight at once since the last call."""
        return self.budget.take_peak()

    def status(self) -> RolloutStatus:
        slots = self._slots.joined()
        held = {slot.number: slot.held.version for slot in slots if slot.held is not None}
        return RolloutStatus(len(slots), self.replaced, held)

    @property
    def replaced(self) -> int:
        """The number of workers that were replaced because they died or hung."""
        return self._slots.replaced

    @property
    def workers(self) -> dict[int, ActorHandle]:
        """The workers that have loaded their model, by their slot."""
        return {slot.number: slot.worker for slot in self._slots.joined()}

    def close(self) -> None:
        """Cancel all unfinished jobs, and end the workers."""
        self._inbox.put(self._close)
        self._thread.join(SMALL_RESULT_TIMEOUT_S)
        self._slots.end_workers()

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
                self._jobs.fail_all(error)
                if isinstance(error, SystemExit):
                    self._close()
        self._slots.not_ready(RuntimeError("the fleet is closed"))

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
            self._jobs.cancel(job)
            return
        if not self._jobs.waiting and not self._jobs.running:
            self._last_seen = time.monotonic()
        self._jobs.add(job)

    def _give_out(self, now: float) -> None:
        """Give waiting jobs to free workers, as long as the budget has room."""
        takers = self._slots.takers(len(self._jobs.waiting), now)
        jobs = [self._jobs.waiting[index] for index in takers.values()]
        for slot, job in zip(takers, jobs, strict=True):
            if not self._jobs.reserve(job):
                return
            self._start(job, slot, now)

    def _start(self, job: Job, slot: Slot, now: float) -> None:
        confirmation = None
        if job.weights is not None and slot.held != job.weights.label:
            confirmation = slot.worker.load.remote(job.weights.label, *job.weights.buckets)
        refs = job.start(slot.worker)
        attempt = Attempt(job, slot, refs, confirmation, now)
        self._jobs.begin(attempt)
        self._slots.begins(slot, now)
        refs[-1].future().add_done_callback(lambda read: self._inbox.put(partial(self._answered, attempt, read)))

    def _answered(self, attempt: Attempt, read: Future[Any]) -> None:
        """Resolve the future of a job, or let the job run again if its worker died. Then the worker is free."""
        if not self._jobs.end(attempt):  # The fleet has given up on the attempt.
            self._slots.ends(attempt.slot, time.monotonic(), typical=False)
            return
        job = attempt.job
        result: Any = None
        error: BaseException | None = None
        try:
            if attempt.confirmation is not None:
                self._confirm(attempt)
            result = job.answer(attempt.refs, read.result())
        except RayActorError as dead:
            self._lost(attempt, dead)
            return
        except (Exception, SystemExit) as raised:
            error = Lost(first_line(raised)) if isinstance(raised, ObjectLostError) else raised
        try:
            self._slots.ends(attempt.slot, time.monotonic(), job.typical and error is None)
        finally:  # Also if no worker can be started in the place of one that leaves.
            if error is None:
                self._jobs.finish(job, result)
            else:
                self._jobs.fail(job, error)
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

    def _lost(self, attempt: Attempt, why: Exception) -> None:
        self._jobs.lost(attempt.job, why)
        self._slots.lost(attempt.slot, why)

    def _look_after_time(self, now: float) -> None:
        """Treat workers that take too long for a job as lost.

        Raises:
            RuntimeError: jobs are waiting, and there was no worker for `start_timeout_s` seconds.
        """
        for attempt in self._jobs.begun_before(now - self.task_timeout_s):
            self._jobs.end(attempt)
            self._lost(attempt, TimeoutError(f"no answer within {self.task_timeout_s:g} s"))
        if not self._jobs.waiting or self._jobs.running or self._slots.joined():
            self._last_seen = now
        elif now - self._last_seen > self.start_timeout_s:
            raise RuntimeError(f"no rollout worker for {self.start_timeout_s:g} s")

    def _look_after_nodes(self, now: float) -> None:
        """Let the workers on nodes that are being drained take no further job."""
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._slots.drain(self._look())

    def _close(self) -> None:
        with self._door:
            self._closed = True
        self._jobs.cancel_all()


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
