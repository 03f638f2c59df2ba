"""The rollout workers as the training loop sees them: tasks in, results out in any order, deaths mended."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from actors.policy.weights import Label
from actors.rollout.in_flight import InFlight
from actors.rollout.plans.plan import Plan
from actors.trajectory import Cost, Task, Tree

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


class Fleet:
    """A fixed number of slots, each with a live worker that has confirmed the current weights.

    Args:
        start_worker: makes the worker of a slot.
        slots: number of workers.
        task_timeout_s: a job that takes longer counts as lost and its worker is replaced.
        check_stop: called while waiting; raises to end the wait.
    """

    def __init__(
        self,
        start_worker: Callable[[int], ActorHandle],
        slots: int,
        task_timeout_s: float,
        check_stop: Callable[[], None],
    ) -> None:
        self.start_worker = start_worker
        self.task_timeout_s = task_timeout_s
        self.check_stop = check_stop
        self.workers = [start_worker(slot) for slot in range(slots)]
        self.weights: tuple[ray.ObjectRef, Label] | None = None
        self.replaced = 0

    def __len__(self) -> int:
        return len(self.workers)

    def wait_ready(self, timeout_s: float) -> tuple[int, ...]:
        """Wait until every worker has loaded its model; returns the latent shape."""
        return ray.get([worker.ready.remote() for worker in self.workers], timeout=timeout_s)[0]

    def broadcast(self, weights: ray.ObjectRef, label: Label) -> None:
        """Give every worker the weights and wait until each has confirmed version and checksum.

        Raises:
            RuntimeError: a worker holds something else afterwards.
        """
        self.weights = (weights, label)
        answers = [(slot, worker.load.remote(weights)) for slot, worker in enumerate(self.workers)]
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

    def _replace(self, slot: int, why: Exception) -> None:
        """A new worker in a slot, with the current weights."""
        log.warning("rollout worker %d is replaced: %s", slot, str(why).strip().splitlines()[0])
        self.replaced += 1
        ray.kill(self.workers[slot])
        self.workers[slot] = self.start_worker(slot)
        if self.weights is not None:
            self._confirm(ray.get(self.workers[slot].load.remote(self.weights[0]), timeout=self.task_timeout_s))

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
        """Each job once, on any worker; a job whose worker dies or hangs runs again elsewhere."""
        waiting, idle = deque(range(len(jobs))), list(range(len(self.workers)))
        running: dict[ray.ObjectRef, _Running] = {}
        deaths = [0] * len(jobs)
        started = [False] * len(jobs)
        while waiting or running:
            while waiting and idle and (started[waiting[0]] or may_start(waiting[0], 0 if running else POLL_S)):
                job, slot = waiting.popleft(), idle.pop(0)
                started[job] = True
                refs = jobs[job](self.workers[slot])
                running[refs[-1]] = _Running(job, slot, refs, time.monotonic() + self.task_timeout_s)
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S) if running else ([], [])
            self.check_stop()
            for ref in done:
                run = running.pop(ref)
                try:
                    result = ray.get(ref, timeout=SMALL_RESULT_TIMEOUT_S)
                except RayActorError as error:
                    self._lost(run, error, deaths, waiting, idle)
                    continue
                idle.append(run.slot)
                yield run.job, run.refs, result
            for ref in [ref for ref, run in running.items() if time.monotonic() > run.deadline]:
                late = TimeoutError(f"no answer within {self.task_timeout_s:g} s")
                self._lost(running.pop(ref), late, deaths, waiting, idle)

    def _lost(self, run: _Running, why: Exception, deaths: list[int], waiting: deque[int], idle: list[int]) -> None:
        deaths[run.job] += 1
        if deaths[run.job] >= MAX_DEATHS_PER_JOB:
            raise RuntimeError(f"{MAX_DEATHS_PER_JOB} rollout workers died on one task; the last: {why}") from why
        self._replace(run.slot, why)
        waiting.appendleft(run.job)
        idle.append(run.slot)

    def close(self) -> None:
        for worker in self.workers:
            ray.kill(worker)
