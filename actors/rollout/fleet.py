"""The rollout workers as the training loop sees them: tasks in, results out in any order, deaths mended."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from actors.policy.weights import Label
from actors.rollout.in_flight import InFlight
from actors.rollout.plans.plan import Plan
from actors.trajectory import Cost, Task, Tree
from services.errors import first_line

log = logging.getLogger(__name__)

POLL_S = 0.5
SMALL_RESULT_TIMEOUT_S = 120
MAX_DEATHS_PER_JOB = 3


@dataclass(frozen=True)
class Generated:
    """One finished task. The two references stay in the object store until dropped."""

    task: Task
    experience: ray.ObjectRef
    images: ray.ObjectRef
    tree: Tree
    cost: Cost


@dataclass(frozen=True)
class _Running:
    job: int
    slot: int
    refs: list[ray.ObjectRef]
    deadline: float


@dataclass(frozen=True)
class _Joining:
    """A worker that is starting, or loading weights, while the others work."""

    worker: ActorHandle
    answer: ray.ObjectRef
    """Of `load`, or of `ready` while there are no weights."""
    attempts: int


class Fleet:
    """Slots for workers. Those that hold the current weights get tasks; the others join when they do.

    Args:
        start_worker: makes the worker of a slot; it may have to wait for a place on the cluster.
        slots: workers without which the run does not begin.
        task_timeout_s: a job that takes longer counts as lost and its worker is replaced.
        check_stop: called while waiting; raises to end the wait.
        more: further slots, whose workers come and go as the cluster has room.
        start_timeout_s: how long there may be no worker at all.
    """

    def __init__(
        self,
        start_worker: Callable[[int], ActorHandle],
        slots: int,
        task_timeout_s: float,
        check_stop: Callable[[], None],
        more: int = 0,
        start_timeout_s: float = 900,
    ) -> None:
        self.start_worker = start_worker
        self.task_timeout_s, self.start_timeout_s = task_timeout_s, start_timeout_s
        self.check_stop = check_stop
        self.slots = slots
        self.weights: tuple[ray.ObjectRef, Label] | None = None
        self.workers: dict[int, ActorHandle] = {}
        self.joining: dict[int, _Joining] = {}
        self.replaced = 0
        for slot in range(slots + more):
            self._start(slot)

    def __len__(self) -> int:
        return len(self.workers) + len(self.joining)

    def wait_ready(self, timeout_s: float) -> tuple[int, ...]:
        """Wait until the workers that the run needs have loaded their model; returns the latent shape."""
        needed = {slot: join for slot, join in self.joining.items() if slot < self.slots}
        shapes = ray.get([join.answer for join in needed.values()], timeout=timeout_s)
        self.adopt({slot: join.worker for slot, join in needed.items()})
        return shapes[0]

    def adopt(self, workers: Mapping[int, ActorHandle]) -> None:
        """Take workers that live into their slots; the next broadcast reaches them."""
        for slot, worker in workers.items():
            self.joining.pop(slot, None)
            self.workers[slot] = worker

    def broadcast(self, weights: ray.ObjectRef, label: Label) -> None:
        """Give every worker the weights and wait until each has confirmed version and checksum; those that are starting
        get them too, and are not waited for.

        Raises:
            RuntimeError: a worker holds something else afterwards.
        """
        self.weights = (weights, label)
        self.joining = {
            slot: replace(join, answer=join.worker.load.remote(weights)) for slot, join in self.joining.items()
        }
        answers = [(slot, worker.load.remote(weights)) for slot, worker in self.workers.items()]
        for slot, answer in answers:
            try:
                self._confirm(ray.get(answer, timeout=self.task_timeout_s))
            except (RayActorError, GetTimeoutError) as error:
                self._replace(slot, error)

    def _confirm(self, answer: tuple[int, str]) -> None:
        assert self.weights is not None
        _, label = self.weights
        if answer != (label.version, label.checksum):
            raise RuntimeError(f"a rollout worker confirmed weights {answer}, not {label}")

    def _start(self, slot: int, attempts: int = 1) -> None:
        worker = self.start_worker(slot)
        answer = worker.load.remote(self.weights[0]) if self.weights else worker.ready.remote()
        self.joining[slot] = _Joining(worker, answer, attempts)

    def _replace(self, slot: int, why: Exception) -> None:
        """A new worker for a slot, which joins when it holds the current weights."""
        log.warning("rollout worker %d is replaced: %s", slot, first_line(why))
        self.replaced += 1
        ray.kill(self.workers.pop(slot))
        self._start(slot)

    def _welcome(self, done: Sequence[ray.ObjectRef], idle: list[int]) -> None:
        """Let those that have answered join.

        Raises:
            RuntimeError: a worker that the run needs cannot start.
        """
        for slot, join in [(slot, join) for slot, join in self.joining.items() if join.answer in done]:
            del self.joining[slot]
            try:
                answer = ray.get(join.answer, timeout=SMALL_RESULT_TIMEOUT_S)
                if self.weights:
                    self._confirm(answer)
            except RayActorError as error:
                if join.attempts >= MAX_DEATHS_PER_JOB and slot < self.slots:
                    raise RuntimeError(f"rollout worker {slot} died {join.attempts} times as it started") from error
                log.warning("rollout worker %d died as it started: %s", slot, first_line(error))
                self._start(slot, join.attempts + 1)
                continue
            self.workers[slot] = join.worker
            idle.append(slot)

    def generate(
        self, tasks: Sequence[Task], plans: Sequence[Plan], room: InFlight, image_bytes: int
    ) -> Iterator[Generated]:
        """Run each task by its plan; yields each as it finishes. The caller gives the room back once it is scored.

        Args:
            room: bounds the bytes of images in flight.
            image_bytes: of one image.
        """
        jobs = [
            lambda worker, task=task, plan=plan: worker.generate.remote(task, plan)
            for task, plan in zip(tasks, plans, strict=True)
        ]
        results = self._run(jobs, lambda job, wait_s: room.reserve(plans[job].leaves * image_bytes, wait_s))
        for job, (experience, images, _), (tree, cost) in results:
            yield Generated(tasks[job], experience, images, tree, cost)

    def sample(
        self, batches: Sequence[tuple[list[str], Sequence[tuple[int, ...]]]], num_steps: int, base: bool = False
    ) -> Iterator[tuple[int, ray.ObjectRef, Cost]]:
        """Deterministic images of (prompts, addresses) batches: (index of the batch, images, cost) as they finish."""
        jobs = [lambda worker, batch=batch: worker.sample.remote(*batch, num_steps, base) for batch in batches]
        for job, (images, _), cost in self._run(jobs, lambda job, wait_s: True):
            yield job, images, cost

    def _run(
        self, jobs: Sequence[Callable[[ActorHandle], list[ray.ObjectRef]]], may_start: Callable[[int, float], bool]
    ) -> Iterator[tuple[int, list[ray.ObjectRef], Any]]:
        """Each job once, on any worker; a job whose worker dies or hangs runs again, on whoever is free."""
        waiting, idle = deque(range(len(jobs))), list(self.workers)
        running: dict[ray.ObjectRef, _Running] = {}
        deaths = [0] * len(jobs)
        started = [False] * len(jobs)
        last_seen = time.monotonic()
        while waiting or running:
            while waiting and idle and (started[waiting[0]] or may_start(waiting[0], 0 if running else POLL_S)):
                job, slot = waiting.popleft(), idle.pop(0)
                started[job] = True
                refs = jobs[job](self.workers[slot])
                running[refs[-1]] = _Running(job, slot, refs, time.monotonic() + self.task_timeout_s)
            expected = [*running, *(join.answer for join in self.joining.values())]
            done, _ = ray.wait(expected, num_returns=1, timeout=POLL_S) if running or not idle else ([], [])
            self.check_stop()
            self._welcome(done, idle)
            for ref in [ref for ref in done if ref in running]:
                run = running.pop(ref)
                try:
                    result = ray.get(ref, timeout=SMALL_RESULT_TIMEOUT_S)
                except RayActorError as error:
                    self._lost(run, error, deaths, waiting)
                    continue
                idle.append(run.slot)
                yield run.job, run.refs, result
            for ref in [ref for ref, run in running.items() if time.monotonic() > run.deadline]:
                late = TimeoutError(f"no answer within {self.task_timeout_s:g} s")
                self._lost(running.pop(ref), late, deaths, waiting)
            last_seen = time.monotonic() if self.workers else last_seen
            if time.monotonic() - last_seen > self.start_timeout_s:
                raise RuntimeError(f"no rollout worker for {self.start_timeout_s:g} s")

    def _lost(self, run: _Running, why: Exception, deaths: list[int], waiting: deque[int]) -> None:
        deaths[run.job] += 1
        if deaths[run.job] >= MAX_DEATHS_PER_JOB:
            raise RuntimeError(f"{MAX_DEATHS_PER_JOB} rollout workers died on one task; the last: {why}") from why
        waiting.appendleft(run.job)
        self._replace(run.slot, why)

    def close(self) -> None:
        for worker in [*self.workers.values(), *(join.worker for join in self.joining.values())]:
            ray.kill(worker)
