"""The jobs of the fleet, the slots of its workers, and which job runs where."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from ray import ObjectRef
from ray.actor import ActorHandle

from actors.policy.weights import Exported, Label


class JobState(Enum):
    """Where a job is."""

    WAITING = auto()
    """It waits for a worker and for room in the byte budget."""
    RUNNING = auto()
    """A worker has it. It holds its bytes of the budget from now on."""
    WAITING_AGAIN = auto()
    """Its worker was lost. It waits for another one and keeps its bytes."""
    DONE = auto()
    """Its future has a result or an error, or was cancelled. Its bytes belong to the images that it gave, if any."""


@dataclass(eq=False)
class Job:
    """What a worker is asked for, and the future of its answer."""

    start: Callable[[ActorHandle], list[ObjectRef]]
    """Starts it on a worker; the last reference is what the driver reads."""
    answer: Callable[[list[ObjectRef], Any], Any]
    """Makes the future's result from the references and from what the driver read."""
    weights: Exported | None
    """The weights that the worker must hold; None if any will do."""
    num_bytes: int
    """Bytes of its images."""
    typical: bool
    """Whether it takes as long as other jobs of its kind, so that it says how fast its worker is."""
    future: Future[Any] = field(default_factory=Future)
    state: JobState = JobState.WAITING
    deaths: int = 0


@dataclass(eq=False)
class Slot:
    """A place for one worker, with the worker that is in it."""

    number: int
    worker: ActorHandle
    starts: int = 1
    """How often in a row a worker of this place was started."""
    adopted: bool = False
    """Whether the worker was given to the fleet, and another one will be if it dies as it starts."""
    node: str = ""
    """The node that the worker is on, once it has loaded its model."""
    held: Label | None = None
    """The weights that the worker has confirmed."""


@dataclass(frozen=True, eq=False)
class Run:
    """A job on a worker."""

    job: Job
    slot: Slot
    refs: list[ObjectRef]
    confirmation: ObjectRef | None
    """Confirms the weights that were sent with the job; None if the worker held them."""
    began: float
    """When it was sent, by the monotonic clock."""
