"""The fleet's unfinished jobs and their bytes in the budget. It has no threads and no clock."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ray import ObjectRef
from ray.actor import ActorHandle

from actors.policy.weights import Exported
from actors.rollout.images import ByteBudget
from actors.rollout.slots import Slot
from services.base.futures import cancel

MAX_DEATHS_PER_JOB = 3


@dataclass(eq=False)
class Job:
    """A request to a worker, and the future of the answer."""

    start: Callable[[ActorHandle], list[ObjectRef]]
    """Starts the job on a worker. The driver reads the last of the returned references."""
    answer: Callable[[list[ObjectRef], Any], Any]
    """Makes the future's result, which has `images`, from the references and the value that the driver read."""
    weights: Exported | None
    """The weights that the worker must have; None if any weights will do."""
    num_bytes: int
    """The bytes of the job's images."""
    typical: bool
    """Whether the job takes as long as most jobs, so that its time measures the worker's speed."""
    future: Future[Any] = field(default_factory=Future)
    holds_bytes: bool = False
    """Whether the job's bytes are reserved and no images own them."""
    deaths: int = 0
    """The number of workers that were lost with this job."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One attempt to run a job on a worker."""

    job: Job
    slot: Slot
    refs: list[ObjectRef]
    confirmation: ObjectRef | None
    """The worker's confirmation of the weights that were sent with the job; None if none were sent."""
    began: float
    """When the job was sent, by the monotonic clock."""


class Jobs:
    """The unfinished jobs: each one waits for a worker, or has one.

    - waiting → running: a worker was given the job.
    - running → waiting: the worker was lost. The job waits before all others.
    - running → finished. A running or a waiting job may also fail or be cancelled.

    The bytes of a job are reserved before its first attempt, and it keeps them while it waits for another one. If it
    finishes, its images own the bytes. Otherwise they are released.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self.budget = budget
        self.waiting: deque[Job] = deque()
        self.running: dict[Attempt, None] = {}
        """The attempts of the jobs that have a worker, in the order of their start."""

    def add(self, job: Job) -> None:
        self.waiting.append(job)

    def reserve(self, job: Job) -> bool:
        """Reserve the bytes of a waiting job, unless it holds them already. Returns whether it holds them now."""
        job.holds_bytes = job.holds_bytes or self.budget.reserve(job.num_bytes)
        return job.holds_bytes

    def begin(self, attempt: Attempt) -> None:
        """A worker was given the job of this attempt."""
        self.waiting.remove(attempt.job)
        self.running[attempt] = None

    def end(self, attempt: Attempt) -> bool:
        """Take the job from its worker. Returns False if it was taken before."""
        if attempt not in self.running:
            return False
        del self.running[attempt]
        return True

    def begun_before(self, time: float) -> list[Attempt]:
        """The attempts that began before this time."""
        return list(takewhile(lambda attempt: attempt.began < time, self.running))

    def lost(self, job: Job, why: Exception) -> None:
        """Let a job whose worker was lost wait for another one. It fails if it has lost too many workers."""
        job.deaths += 1
        if job.deaths < MAX_DEATHS_PER_JOB:
            self.waiting.appendleft(job)
            return
        error = RuntimeError(f"{MAX_DEATHS_PER_JOB} rollout workers died on one task; the last one: {why}")
        error.__cause__ = why
        self.fail(job, error)

    def finish(self, job: Job, result: Any) -> None:
        """Resolve a job's future. From now on the images of the result own the bytes."""
        job.holds_bytes = False
        try:
            job.future.set_result(result)
        except InvalidStateError:  # The caller has cancelled it.
            result.images.release()

    def fail(self, job: Job, error: BaseException) -> None:
        self._release(job)
        with suppress(InvalidStateError):  # The caller has cancelled it.
            job.future.set_exception(error)

    def cancel(self, job: Job) -> None:
        self._release(job)
        cancel(job.future)

    def cancel_waiting(self) -> None:
        while self.waiting:
            self.cancel(self.waiting.popleft())

    def cancel_all(self) -> None:
        for job in self._take_all():
            self.cancel(job)

    def fail_all(self, error: BaseException) -> None:
        for job in self._take_all():
            self.fail(job, error)

    def _take_all(self) -> list[Job]:
        jobs = [*self.waiting, *(attempt.job for attempt in self.running)]
        self.waiting.clear()
        self.running.clear()
        return jobs

    def _release(self, job: Job) -> None:
        if job.holds_bytes:
            job.holds_bytes = False
            self.budget.release(job.num_bytes)
