"""The fleet on real Ray actors that hold no Torch: deaths, hangs, confirmations, and the bound on bytes in flight."""

import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future

import pytest
import ray

from actors.rollout.fleet import Fleet
from actors.rollout.results import Generated
from actors.trajectory import Task
from tests.helpers.fake_workers import LARGE_BYTES, PLAN, FakeWorker, LargeWorker, PacedWorker, exported, fleet_of


def object_store_bytes() -> float:
    return ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]


pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def fleet(tmp_path):
    fleet = fleet_of(lambda slot: FakeWorker.remote(str(tmp_path)), 2)
    yield fleet
    fleet.close()


def submit(fleet: Fleet, prompts: Iterable[str]) -> list[Future[Generated]]:
    weights = exported()
    tasks = [Task(i, prompt, (0, 0, i), 3) for i, prompt in enumerate(prompts)]
    return [fleet.generate(task, PLAN, weights) for task in tasks]


def run(fleet: Fleet, *prompts: str) -> list[str]:
    return [future.result(60).images.pixels() for future in submit(fleet, prompts)]


def test_every_task_is_done_once(fleet):
    assert run(fleet, *"abcdefg") == [f"images {i}" for i in range(7)]
    assert fleet.replaced == 0


def test_each_task_is_done_with_its_own_weights(fleet):
    older, newer = exported(3), exported(4)
    futures = [fleet.generate(Task(i, "what", (0, 0, i), 3), PLAN, newer if i % 3 else older) for i in range(9)]
    held = [ray.get(future.result(60).experience, timeout=30) for future in futures]
    assert held == [f"decisions {i} of {4 if i % 3 else 3}" for i in range(9)]


def test_a_slow_worker_gets_no_job_that_the_other_answers_sooner():
    fleet = fleet_of(lambda slot: PacedWorker.remote((0.1, 3.0)[slot]), 2)

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


def test_a_task_that_fails_gives_its_bytes_back(tmp_path):
    fleet = fleet_of(lambda slot: FakeWorker.remote(str(tmp_path)), 2, 10, 10)
    first, second = submit(fleet, ["fail", "a"])
    with pytest.raises(ValueError, match="no such prompt"):
        first.result(60)
    second.result(60)
    assert fleet.budget.reserved == 10
    fleet.close()


def test_a_task_that_is_cancelled_after_its_worker_died_gives_its_bytes_back(tmp_path, caplog):
    """The worker that would take it never finds a place."""
    started = []

    def start(slot: int):
        started.append(slot)
        return FakeWorker.options(resources={"nowhere": 1} if len(started) > 1 else {}).remote(str(tmp_path))

    fleet = fleet_of(start, 1)
    (task,) = submit(fleet, ["always die"])
    deadline = time.monotonic() + 60
    while not fleet.replaced and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fleet.budget.reserved == 1
    fleet.cancel()
    with pytest.raises(CancelledError):
        task.result(60)
    assert fleet.budget.reserved == 0
    assert not [record for record in caplog.records if record.name == "concurrent.futures"]
    fleet.close()


def test_a_worker_that_confirms_other_weights_stops_the_run(tmp_path):
    fleet = fleet_of(lambda slot: FakeWorker.remote(str(tmp_path), lies=True), 1)
    with pytest.raises(RuntimeError, match="confirmed weights"):
        run(fleet, "a")
    fleet.close()


def test_generation_waits_while_the_bytes_in_flight_are_at_the_bound(tmp_path):
    fleet = fleet_of(lambda slot: FakeWorker.remote(str(tmp_path)), 2, 10, 25)
    waiting = deque(submit(fleet, "abcdefgh"))
    first, second, third = (waiting.popleft() for _ in range(3))
    images = [first.result(60).images, second.result(60).images]
    with pytest.raises(TimeoutError):
        third.result(0.5)
    images[0].release()
    third.result(60).images.release()
    images[1].release()
    for future in waiting:
        future.result(60).images.release()
    assert fleet.take_peak_bytes() == 20
    fleet.close()


def test_what_no_worker_has_begun_can_be_cancelled_and_the_fleet_continues(tmp_path):
    fleet = fleet_of(lambda slot: FakeWorker.remote(str(tmp_path)), 2, 10, 10)
    images = submit(fleet, "a")[0].result(60).images
    waiting = submit(fleet, "ab")
    fleet.cancel()
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(60)
    images.release()
    assert run(fleet, "c") == ["images 0"]
    fleet.close()


def test_every_job_is_resolved_when_the_fleet_closes_and_later_jobs_are_cancelled(fleet, tmp_path):
    (hanging,) = submit(fleet, ["hang"])
    while not (tmp_path / "hang-0").exists():
        time.sleep(0.01)
    fleet.close()
    for future in [hanging, *submit(fleet, "ab")]:
        with pytest.raises(CancelledError):
            future.result(10)
    assert fleet.budget.reserved == 0


def test_a_callback_of_a_future_may_call_the_fleet(fleet):
    later: Future[Future[Generated]] = Future()
    submit(fleet, "a")[0].add_done_callback(lambda _: later.set_result(submit(fleet, "b")[0]))
    assert later.result(60).result(60).images.pixels() == "images 0"


def test_a_run_without_workers_ends_after_its_time(tmp_path):
    slots = iter((FakeWorker, FakeWorker.options(resources={"none": 1})))
    fleet = fleet_of(lambda slot: next(slots).remote(str(tmp_path)), 1, start_timeout_s=2)
    with pytest.raises(RuntimeError, match="no rollout worker for 2 s"):
        run(fleet, "die")
    fleet.close()


def test_nothing_stays_in_the_object_store_of_tasks_that_are_released_and_dropped():
    fleet = fleet_of(lambda slot: LargeWorker.remote(), 1)
    for future in submit(fleet, "a" * 20):
        future.result(60).images.release()
    del future
    deadline = time.monotonic() + 30
    while (used := object_store_bytes()) > LARGE_BYTES and time.monotonic() < deadline:
        time.sleep(0.1)
    assert used <= LARGE_BYTES
    fleet.close()
