"""The fleet on real Ray actors that hold no Torch: deaths, hangs, confirmations, and the bound on bytes in flight."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray

from actors.policy.weights import Weights
from actors.rollout.fleet import Fleet
from actors.rollout.in_flight import InFlight
from actors.rollout.plans import Plan, ode_plan
from actors.trajectory import Cost, Task

PLAN = ode_plan(1)


@ray.remote(num_cpus=0)
class FakeWorker:
    """Answers with its task; dies or hangs once on tasks that say so."""

    def __init__(self, notes: str, lies: bool = False) -> None:
        self.notes, self.lies = notes, lies

    def ready(self):
        return (1,)

    def load(self, weights: Weights):
        return weights.version, "something else" if self.lies else weights.checksum

    @ray.method(num_returns=3)
    def generate(self, task: Task, plan: Plan):
        marker = Path(self.notes) / f"{task.prompt}-{task.index}"
        if task.prompt in {"die", "hang"} and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL if task.prompt == "die" else signal.SIGSTOP)
        if task.prompt == "always die":
            os.kill(os.getpid(), signal.SIGKILL)
        return f"decisions {task.index}", f"images {task.index}", (task.index, Cost())


pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(lambda slot: FakeWorker.remote(str(tmp_path)), 2, 60, lambda: None)
    fleet.wait_ready(60)
    weights = Weights(3, "abc", {})
    fleet.broadcast(ray.put(weights), weights.label)
    yield fleet
    fleet.close()


def tasks(*prompts: str) -> list[Task]:
    return [Task(i, prompt, (0, 0, i), 3) for i, prompt in enumerate(prompts)]


def run(fleet: Fleet, *prompts: str) -> list[str]:
    done = {
        result.task.index: ray.get(result.images, timeout=30)
        for result in fleet.generate(tasks(*prompts), [PLAN] * len(prompts), InFlight(10**9), 1)
    }
    return [done[i] for i in range(len(prompts))]


def test_every_task_is_done_once(fleet):
    assert run(fleet, *"abcdefg") == [f"images {i}" for i in range(7)]
    assert fleet.replaced == 0


@pytest.mark.chaos
def test_a_worker_that_dies_is_replaced_and_its_task_runs_again(fleet):
    assert run(fleet, "a", "die", "b", "die", "c") == [f"images {i}" for i in range(5)]
    assert fleet.replaced == 2


@pytest.mark.chaos
def test_a_worker_that_hangs_is_noticed_and_replaced(fleet):
    fleet.task_timeout_s = 3
    assert run(fleet, "a", "hang", "b") == [f"images {i}" for i in range(3)]
    assert fleet.replaced == 1


@pytest.mark.chaos
def test_a_task_that_kills_every_worker_stops_the_run(fleet):
    with pytest.raises(RuntimeError, match="died on one task"):
        run(fleet, "always die")


def test_a_worker_that_confirms_other_weights_stops_the_run(tmp_path):
    fleet = Fleet(lambda slot: FakeWorker.remote(str(tmp_path), lies=True), 1, 60, lambda: None)
    fleet.wait_ready(60)
    weights = Weights(3, "abc", {})
    with pytest.raises(RuntimeError, match="confirmed weights"):
        fleet.broadcast(ray.put(weights), weights.label)
    fleet.close()


def test_generation_waits_while_the_bytes_in_flight_are_at_the_bound(fleet):
    room = InFlight(25)
    most = 0
    for result in fleet.generate(tasks(*"abcdefgh"), [PLAN] * 8, room, 10):
        most = max(most, room.bytes)
        threading.Timer(0.05, room.release, [10]).start()
        assert result.task.index >= 0
    assert most <= 20
    assert room.peak == 20


def test_a_stop_ends_the_wait(fleet):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    fleet.check_stop = stop
    started = time.monotonic()
    with pytest.raises(Stop):
        run(fleet, "a", "b")
    assert time.monotonic() - started < 30


def test_one_task_may_exceed_the_bound_when_nothing_else_is_in_flight():
    room = InFlight(5)
    assert room.reserve(10)
    assert not room.reserve(1)
    room.release(10)
    assert room.reserve(1)
