"""The fleet on real Ray actors that hold no Torch: deaths, hangs, confirmations, and the bound on bytes in flight."""

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future

import pytest
import ray

from actors.rollout.fleet import Fleet, Generated
from actors.rollout.in_flight import InFlight
from actors.trajectory import Task
from tests.helpers.fake_workers import EMPTY, PLAN, FakeWorker, PacedWorker, exported

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(lambda slot: FakeWorker.remote(str(tmp_path)), 2, 60)
    fleet.wait_ready(60)
    yield fleet
    fleet.close()


def submit(fleet: Fleet, prompts: Iterable[str], room: InFlight = EMPTY, num_bytes: int = 1) -> list[Future[Generated]]:
    weights = exported()
    tasks = [Task(i, prompt, (0, 0, i), 3) for i, prompt in enumerate(prompts)]
    return [fleet.generate(task, PLAN, weights, room, num_bytes) for task in tasks]


def run(fleet: Fleet, *prompts: str) -> list[str]:
    return [ray.get(future.result(60).images, timeout=30) for future in submit(fleet, prompts)]


def test_every_task_is_done_once(fleet):
    assert run(fleet, *"abcdefg") == [f"images {i}" for i in range(7)]
    assert fleet.replaced == 0


def test_each_task_is_done_with_its_own_weights(fleet):
    older, newer = exported(3), exported(4)
    futures = [
        fleet.generate(Task(i, "what", (0, 0, i), 3), PLAN, newer if i % 3 else older, EMPTY, 1) for i in range(9)
    ]
    held = [ray.get(future.result(60).experience, timeout=30) for future in futures]
    assert held == [f"decisions {i} of {4 if i % 3 else 3}" for i in range(9)]


def test_a_slow_worker_gets_no_job_that_the_other_answers_sooner():
    fleet = Fleet(lambda slot: PacedWorker.remote((0.1, 3.0)[slot]), 2, 60)
    fleet.wait_ready(60)

    def paces(jobs: int) -> list[float]:
        return [ray.get(future.result(60).experience, timeout=30) for future in submit(fleet, "a" * jobs)]

    assert set(paces(4)) == {0.1, 3.0}
    assert paces(3) == [0.1] * 3
    assert paces(40).index(3.0) > 0
    fleet.close()


def test_a_worker_that_dies_is_replaced_and_its_task_runs_again(fleet):
    assert run(fleet, "a", "die", "b", "die", "c") == [f"images {i}" for i in range(5)]
    assert fleet.replaced == 2


def test_a_worker_that_hangs_is_noticed_and_replaced(fleet):
    fleet.task_timeout_s = 3
    assert run(fleet, "a", "hang", "b") == [f"images {i}" for i in range(3)]
    assert fleet.replaced == 1


def test_a_task_that_kills_every_worker_stops_the_run(fleet):
    with pytest.raises(RuntimeError, match="died on one task"):
        run(fleet, "always die")


def test_a_task_that_fails_gives_its_room_back(fleet):
    room = InFlight(10)
    first, second = submit(fleet, ["fail", "a"], room, 10)
    with pytest.raises(ValueError, match="no such prompt"):
        first.result(60)
    second.result(60)
    assert room.bytes == 10


def test_a_task_that_is_cancelled_after_its_worker_died_gives_its_room_back(tmp_path, caplog):
    """The worker that would take it never finds a place."""
    started = []

    def start(slot: int):
        started.append(slot)
        return FakeWorker.options(resources={"nowhere": 1} if len(started) > 1 else {}).remote(str(tmp_path))

    fleet, room = Fleet(start, 1, 60), InFlight(10)
    fleet.wait_ready(60)
    (task,) = submit(fleet, ["always die"], room, 10)
    deadline = time.monotonic() + 60
    while not fleet.replaced and time.monotonic() < deadline:
        time.sleep(0.01)
    fleet.cancel()
    assert task.cancelled()
    assert room.bytes == 0
    assert not [record for record in caplog.records if record.name == "concurrent.futures"]
    fleet.close()


def test_a_worker_that_confirms_other_weights_stops_the_run(tmp_path):
    fleet = Fleet(lambda slot: FakeWorker.remote(str(tmp_path), lies=True), 1, 60)
    fleet.wait_ready(60)
    with pytest.raises(RuntimeError, match="confirmed weights"):
        run(fleet, "a")
    fleet.close()


def test_generation_waits_while_the_bytes_in_flight_are_at_the_bound(fleet):
    room = InFlight(25)
    most = 0
    for future in submit(fleet, "abcdefgh", room, 10):
        future.result(60)
        most = max(most, room.bytes)
        threading.Timer(0.05, room.release, [10]).start()
    assert most <= 20
    assert room.take_peak() == 20


def test_what_no_worker_has_begun_can_be_cancelled_and_the_fleet_goes_on(fleet):
    room = InFlight(1)
    room.reserve(1)
    waiting = submit(fleet, "ab", room)
    fleet.cancel()
    assert all(future.cancelled() for future in waiting)
    assert run(fleet, "c") == ["images 0"]


def test_a_run_without_workers_ends_after_its_time(tmp_path):
    slots = iter((FakeWorker, FakeWorker.options(resources={"none": 1})))
    fleet = Fleet(lambda slot: next(slots).remote(str(tmp_path)), 1, 60, start_timeout_s=2)
    fleet.wait_ready(60)
    with pytest.raises(RuntimeError, match="no rollout worker for 2 s"):
        run(fleet, "die")
    fleet.close()


def test_one_task_may_exceed_the_bound_when_nothing_else_is_in_flight():
    room = InFlight(5)
    assert room.reserve(10)
    assert not room.reserve(1)
    room.release(10)
    assert room.reserve(1)
