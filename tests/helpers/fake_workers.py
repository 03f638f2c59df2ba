"""Fleets on a real Ray whose rollout workers hold no PyTorch."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.policy.weights import Arrays, Exported, Label
from actors.rollout.fleet import Fleet
from actors.rollout.plans import Plan, ode_plan
from actors.trajectory import Cost, Outcome, Task

PLAN = ode_plan(1)
LARGE_BYTES = 10**7


class Loads:
    """What every fake worker does: it says on which node it is, and confirms the weights that it is sent."""

    def ready(self):
        return ray.get_runtime_context().get_node_id()

    def load(self, label: Label, *buckets: Arrays):
        return label.version, label.checksum


@ray.remote(num_cpus=0)
class FakeWorker(Loads):
    """Answers with its task; dies or hangs once on tasks that say so."""

    def __init__(self, notes: str, lies: bool = False) -> None:
        self.notes, self.lies = notes, lies

    def load(self, label: Label, *buckets: Arrays):
        self.version = label.version
        return label.version, "something else" if self.lies else label.checksum

    @ray.method(num_returns=3)
    def generate(self, task: Task, plan: Plan):
        marker = Path(self.notes) / f"{task.prompt}-{task.index}"
        if task.prompt in {"die", "hang"} and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL if task.prompt == "die" else signal.SIGSTOP)
        if task.prompt == "fail":
            raise ValueError("no such prompt")
        if task.prompt == "always die":
            os.kill(os.getpid(), signal.SIGKILL)
        return f"decisions {task.index} of {self.version}", f"images {task.index}", Outcome(task.index, None, Cost())


@ray.remote(num_cpus=0)
class PacedWorker(Loads):
    """Takes so many seconds for a task, and says how many and which process did it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @ray.method(num_returns=3)
    def generate(self, task: Task, plan: Plan):
        time.sleep(self.seconds)
        return self.seconds, None, Outcome(os.getpid(), None, Cost())


@ray.remote(num_cpus=0)
class LargeWorker(Loads):
    """Its tasks leave 2 × LARGE_BYTES in the object store of its node."""

    @ray.method(num_returns=3)
    def generate(self, task: Task, plan: Plan):
        return bytes(LARGE_BYTES), bytes(LARGE_BYTES), Outcome(None, None, Cost())


def exported(version: int = 3) -> Exported:
    return Exported((ray.put({}),), Label(version, "abc", 0))


def fleet_of(
    start: Callable[[int], ActorHandle], slots: int, image_bytes: int = 1, bytes_in_flight: int = 10**9, **more: Any
) -> Fleet:
    """A fleet whose workers are ready; a task of PLAN has one image."""
    fleet = Fleet(start, slots, 60, image_bytes=image_bytes, bytes_in_flight=bytes_in_flight, **more)
    fleet.wait_ready(60)
    return fleet
