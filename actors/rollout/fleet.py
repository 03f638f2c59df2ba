"""The rollout workers as the training loop sees them: jobs in, futures of their answers out, deaths mended."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.policy.weights import Exported, Label
from actors.rollout.dispatch import Pace, dispatch
from actors.rollout.in_flight import InFlight
from actors.rollout.plans.plan import Plan
from actors.trajectory import Cost, Task, Tree
from services.base.errors import UserError, death, first_line, refusal

log = logging.getLogger(__name__)

POLL_S = 0.5
WAKE_S = 0.02
"""How soon a worker that waits for a job gets it."""
DRAIN_POLL_S = 1.0
SMALL_RESULT_TIMEOUT_S = 120
MAX_DEATHS_PER_JOB = 3
TRY_AGAIN_AFTER = 10
"""Jobs' times without a job, after which a slow worker gets one to see whether it still is."""


@dataclass(frozen=True)
class Generated:
    """One finished task. What the references name stays in the object store until they are dropped."""

    task: Task
    experience: ObjectRef
    images: ObjectRef | None
    """None once they are scored."""
    tree: Tree
    finite_M: np.ndarray
    """Whether each image is finite; the others are holes."""
    cost: Cost


@dataclass(eq=False)
class _Job:
    start: Callable[[ActorHandle], list[ObjectRef]]
    """Starts it on a worker; the last reference is what the driver reads."""
    answer: Callable[[list[ObjectRef], Any], Any]
    """What the future gives, of the references and what was read."""
    weights: Exported | None
    """What the worker must hold; whatever it holds if None."""
    may_start: Callable[[], bool]
    alike: bool = False
    """One of many that take as long on the same worker."""
    future: Future[Any] = field(default_factory=Future)
    started: bool = False
    deaths: int = 0


@dataclass(frozen=True)
class _Running:
    job: _Job
    slot: int
    worker: ActorHandle
    refs: list[ObjectRef]
    confirmation: ObjectRef | None
    """Of weights that were sent with the job."""
    began: float
    """By the monotonic clock."""


@dataclass(frozen=True)
class _Took:
    """A worker, for the latest of the jobs that are alike."""

    seconds: float
    ended: float
    """By the monotonic clock."""


@dataclass(frozen=True)
class _Joining:
    """A worker that is starting while the others work."""

    worker: ActorHandle
    ready: ObjectRef
    attempts: int


class Fleet:
    """Slots for workers, and a thread that gives waiting jobs, first come first served, to those that are free.

    A worker that is slower than the others gets no job that these would answer sooner (`dispatch`). It gets the weights
    of a job with the job, unless it holds them already. A job whose worker dies or hangs runs again, on whoever is
    free; a slot whose worker died gets a new one, which joins once it has loaded its model. A worker on a node that is
    to go (`ray drain-node`, SIGTERM to `ray start --block`: a spot node) finishes its job, gets no other, and leaves.

    Args:
        start_worker: makes the worker of a slot; it may have to wait for a place on the cluster.
        slots: workers without which the run does not begin.
        task_timeout_s: a job that takes longer counts as lost and its worker is replaced.
        more: further slots, whose workers come and go as the cluster has room.
        start_timeout_s: how long jobs may wait with no worker at all.
        draining: ids of the nodes that are to go; none are looked for if not given.
    """

    def __init__(
        self,
        start_worker: Callable[[int], ActorHandle],
        slots: int,
        task_timeout_s: float,
        more: int = 0,
        start_timeout_s: float = 900,
        draining: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self.start_worker, self.draining = start_worker, draining
        self.task_timeout_s, self.start_timeout_s = task_timeout_s, start_timeout_s
        self.slots = slots
        self.workers: dict[int, ActorHandle] = {}
        self.joining: dict[int, _Joining] = {}
        self.replaced = 0
        self._held: dict[int, Label] = {}
        self._took: dict[int, _Took] = {}
        self._node: dict[int, str] = {}
        self._leaving: Collection[str] = ()
        self._next_look = 0.0
        self._waiting: deque[_Job] = deque()
        self._running: dict[ObjectRef, _Running] = {}
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._last_seen = time.monotonic()
        for slot in range(slots + more):
            self._start(slot)
        self._thread = threading.Thread(target=self._serve, name="fleet", daemon=True)

    def __len__(self) -> int:
        return len(self.workers) + len(self.joining)

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the workers that the run needs have loaded their model, and take jobs from now on.

        Raises:
            UserError: one refuses to start, dies as it starts for the third time, or is late.
        """
        deadline = time.monotonic() + timeout_s
        while needed := {slot: self.joining[slot].ready for slot in self.joining if slot < self.slots}:
            done, _ = ray.wait(list(needed.values()), timeout=max(0, deadline - time.monotonic()))
            if not done:
                raise UserError(
                    f"rollout workers {', '.join(map(str, needed))} have not started within {timeout_s:g} s; see their "
                    "logs (logs/rollout-*.log), and raise ray.start_timeout_s if the model takes longer to load"
                )
            self._welcome(done)
        self._thread.start()

    def adopt(self, workers: Mapping[int, ActorHandle], timeout_s: float = SMALL_RESULT_TIMEOUT_S) -> None:
        """Take workers that live into their slots."""
        nodes = ray.get([worker.ready.remote() for worker in workers.values()], timeout=timeout_s)
        with self._changed:
            for (slot, worker), node in zip(workers.items(), nodes, strict=True):
                self.joining.pop(slot, None)
                self._held.pop(slot, None)
                self._took.pop(slot, None)
                self.workers[slot], self._node[slot] = worker, node

    def generate(self, task: Task, plan: Plan, weights: Exported, room: InFlight, num_bytes: int) -> Future[Generated]:
        """Run a task by its plan, once there is room for `num_bytes` of images; whoever gets them gives it back."""
        job = self._submit(
            lambda worker: worker.generate.remote(task, plan),
            lambda refs, answer: Generated(task, refs[0], refs[1], *answer),
            weights,
            lambda: room.reserve(num_bytes),
            alike=True,
        )

        def give_back(future: Future[Generated]) -> None:
            if job.started and (future.cancelled() or future.exception()):
                room.release(num_bytes)

        job.future.add_done_callback(give_back)
        return job.future

    def sample(
        self,
        prompts: list[str],
        addresses: Sequence[tuple[int, ...]],
        num_steps: int,
        weights: Exported | None = None,
        base: bool = False,
    ) -> Future[tuple[ObjectRef, np.ndarray, Cost]]:
        """Deterministic images, one a prompt, whether each is finite, and what they cost.

        Args:
            weights: to sample from; what the model came with if not given.
            base: leave out what is trained.
        """
        return self._submit(
            lambda worker: worker.sample.remote(prompts, addresses, num_steps, base),
            lambda refs, answer: (refs[0], *answer),
            weights,
        ).future

    def versions(self) -> dict[int, int]:
        """The policy version that each worker holds, by slot."""
        with self._changed:
            return {slot: label.version for slot, label in self._held.items() if slot in self.workers}

    def cancel(self) -> None:
        """Forget the jobs that no worker has yet."""
        with self._changed:
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self.cancel()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(SMALL_RESULT_TIMEOUT_S)
        for worker in [*self.workers.values(), *(join.worker for join in self.joining.values())]:
            ray.kill(worker)

    def _submit(
        self,
        start: Callable[[ActorHandle], list[ObjectRef]],
        answer: Callable[[list[ObjectRef], Any], Any],
        weights: Exported | None,
        may_start: Callable[[], bool] = lambda: True,
        alike: bool = False,
    ) -> _Job:
        job = _Job(start, answer, weights, may_start, alike)
        with self._changed:
            if not self._waiting and not self._running:
                self._last_seen = time.monotonic()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _serve(self) -> None:
        """Give out jobs and take in answers until closed. What no retry mends is raised by every unfinished future."""
        while not self._closed:
            try:
                with self._changed:
                    self._give_out()
                done = self._wait()
                with self._changed:
                    self._welcome(done)
                    self._take_in(done)
                    self._look_after_time()
                    self._look_after_nodes()
            except (Exception, SystemExit) as error:  # SystemExit is how Ray says that its node is gone
                log.warning("the fleet gives up its jobs: %s", first_line(error))
                with self._changed:
                    self._closed = isinstance(error, SystemExit)
                    lost = [*self._waiting, *(run.job for run in self._running.values())]
                    self._waiting.clear()
                    self._running.clear()
                for job in lost:
                    job.future.set_exception(error)

    def _busy(self) -> dict[int, _Running]:
        """What runs on the workers that are still in their slots, by slot."""
        return {run.slot: run for run in self._running.values() if self.workers.get(run.slot) is run.worker}

    def _free(self, leaving: bool) -> list[int]:
        """Slots of workers with no job, on nodes that are to go or on the others."""
        busy = self._busy()
        return [slot for slot in self.workers if slot not in busy and (self._node[slot] in self._leaving) == leaving]

    def _give_out(self) -> None:
        if not self._waiting:
            return
        busy = self._busy()
        paces = self._paces(busy)
        taken = dispatch(len(self._waiting), paces, paces.keys() - busy.keys())
        jobs = {slot: self._waiting[index] for slot, index in taken.items()}
        for slot, job in jobs.items():
            if not job.started and not job.may_start():
                return
            job.started = True
            self._waiting.remove(job)
            worker, confirmation = self.workers[slot], None
            if job.weights is not None and self._held.get(slot) != job.weights.label:
                confirmation = worker.load.remote(job.weights.label, *job.weights.buckets)
            refs = job.start(worker)
            self._running[refs[-1]] = _Running(job, slot, worker, refs, confirmation, time.monotonic())

    def _paces(self, busy: Mapping[int, _Running]) -> dict[int, Pace]:
        """Of the workers that take jobs and are free or known. One that is not known, or has had no job for long, gets
        the next; one that takes longer than it took before is believed to be that slow from then on: it may hang.
        """
        now, paces = time.monotonic(), {}
        for slot in self.workers:
            run, took = busy.get(slot), self._took.get(slot)
            if self._node[slot] in self._leaving or (run and not took):
                continue
            if took is None:
                paces[slot] = Pace(0, math.inf)
            elif run:
                elapsed = now - run.began
                seconds = max(took.seconds, elapsed)
                paces[slot] = Pace(2 * seconds - elapsed, seconds)
            else:
                long_idle = now - took.ended > TRY_AGAIN_AFTER * took.seconds
                paces[slot] = Pace(0 if long_idle else took.seconds, took.seconds)
        return paces

    def _wait(self) -> list[ObjectRef]:
        """References that have an answer; none after a while, or when there may be something to give out."""
        with self._changed:
            expected = [*self._running, *(join.ready for join in self.joining.values())]
            idle = bool(self._free(leaving=False))
            if not self._running and (idle or not expected):
                self._changed.wait(WAKE_S if self._waiting else POLL_S)
                timeout_s = 0.0
            else:
                timeout_s = WAKE_S if idle else POLL_S
        return ray.wait(expected, timeout=timeout_s)[0] if expected else []

    def _welcome(self, done: Sequence[ObjectRef]) -> None:
        """Let those that have loaded their model join.

        Raises:
            UserError: a worker that the run needs refuses to start, or died for the third time as it did.
        """
        for slot, join in [(slot, join) for slot, join in self.joining.items() if join.ready in done]:
            del self.joining[slot]
            try:
                node = ray.get(join.ready, timeout=SMALL_RESULT_TIMEOUT_S)
            except RayActorError as error:
                if slot < self.slots and (said := refusal(error)):
                    raise said from error
                if slot < self.slots and join.attempts >= MAX_DEATHS_PER_JOB:
                    raise UserError(
                        f"rollout worker {slot} died {join.attempts} times as it started: {death(error)}"
                    ) from error
                log.warning("rollout worker %d died as it started: %s", slot, death(error))
                self._start(slot, join.attempts + 1)
                continue
            self.workers[slot], self._node[slot] = join.worker, node

    def _take_in(self, done: Sequence[ObjectRef]) -> None:
        for ref in [ref for ref in done if ref in self._running]:
            run = self._running.pop(ref)
            try:
                if run.confirmation is not None:
                    self._confirm(run)
                answer = ray.get(run.refs[-1], timeout=SMALL_RESULT_TIMEOUT_S)
            except RayActorError as error:
                self._lost(run, error)
            except (Exception, SystemExit) as error:
                run.job.future.set_exception(error)
                if isinstance(error, SystemExit):
                    raise
            else:
                if run.job.alike:
                    now = time.monotonic()
                    self._took[run.slot] = _Took(now - run.began, now)
                run.job.future.set_result(run.job.answer(run.refs, answer))

    def _confirm(self, run: _Running) -> None:
        """Note that the worker holds what it was sent.

        Raises:
            RuntimeError: something else.
        """
        assert run.job.weights is not None
        label = run.job.weights.label
        answer = ray.get(run.confirmation, timeout=SMALL_RESULT_TIMEOUT_S)
        if answer != (label.version, label.checksum):
            raise RuntimeError(f"a rollout worker confirmed weights {answer}, not {label}")
        self._held[run.slot] = label

    def _look_after_time(self) -> None:
        now = time.monotonic()
        for ref in [ref for ref, run in self._running.items() if now > run.began + self.task_timeout_s]:
            self._lost(self._running.pop(ref), TimeoutError(f"no answer within {self.task_timeout_s:g} s"))
        if self.workers or not self._waiting:
            self._last_seen = now
        elif now - self._last_seen > self.start_timeout_s:
            raise RuntimeError(f"no rollout worker for {self.start_timeout_s:g} s")

    def _look_after_nodes(self) -> None:
        """Workers that have nothing to do leave the nodes that are to go."""
        if self.draining is None or time.monotonic() < self._next_look:
            return
        self._leaving, self._next_look = self.draining(), time.monotonic() + DRAIN_POLL_S
        for slot in self._free(leaving=True):
            log.info("rollout worker %d leaves a node that is drained", slot)
            self._vacate(slot)

    def _vacate(self, slot: int) -> None:
        """End a worker and start another in its slot."""
        self._held.pop(slot, None)
        self._took.pop(slot, None)
        ray.kill(self.workers.pop(slot))
        self._start(slot)

    def _lost(self, run: _Running, why: Exception) -> None:
        """The job runs again; a worker that is still in its slot gives it to a new one."""
        job = run.job
        job.deaths += 1
        if job.deaths >= MAX_DEATHS_PER_JOB:
            many = RuntimeError(f"{MAX_DEATHS_PER_JOB} rollout workers died on one task; the last: {why}")
            many.__cause__ = why
            job.future.set_exception(many)
        else:
            self._waiting.appendleft(job)
        if self.workers.get(run.slot) is not run.worker:
            return
        log.warning("rollout worker %d is replaced: %s", run.slot, first_line(why))
        self.replaced += 1
        self._vacate(run.slot)

    def _start(self, slot: int, attempts: int = 1) -> None:
        worker = self.start_worker(slot)
        self.joining[slot] = _Joining(worker, worker.ready.remote(), attempts)
