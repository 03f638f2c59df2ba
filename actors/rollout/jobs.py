"""The fleet's jobs, the slots of its workers, and the attempts to run jobs on workers."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from ray import ObjectRef
from ray.actor import ActorHandle

from actors.policy.weights import Exported, Label


class JobState(Enum):
    """The state of a job."""

    WAITING = auto()
    """The job waits for a worker and for room in the byte budget."""
    RUNNING = auto()
    """A worker has the job, and its bytes are reserved in the budget."""
    WAITING_AGAIN = auto()
    """The job's worker was lost. The job waits for another one and keeps its bytes."""
    DONE = auto()
    """The job's future has a result or an error, or was cancelled. If the result has images, they own the bytes."""


@dataclass(eq=False)
class Job:
    """A request to a worker, and the future of the answer."""

    start: Callable[[ActorHandle], list[ObjectRef]]
    """Starts the job on a worker. The driver reads the last of the returned references."""
    answer: Callable[[list[ObjectRef], Any], Any]
    """Makes the future's result from the references and the value that the driver read."""
    weights: Exported | None
    """The weights that the worker must have; None if any weights will do."""
    num_bytes: int
    """The bytes of the job's images."""
    typical: bool
    """Whether the job takes as long as most jobs, so that its time measures the worker's speed."""
    future: Future[Any] = field(default_factory=Future)
    state: JobState = JobState.WAITING
    deaths: int = 0


@dataclass(eq=False)
class Slot:
    """A place for one worker, with its present worker."""

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
