"""The fleet over workers that are futures in the test's hands: what becomes of jobs when something raises. No Ray."""

import time
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from queue import Empty, SimpleQueue

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from actors.lost import LearnerLost
from actors.policy.weights import Exported, Label
from actors.rollout.fleet import Fleet
from actors.rollout.plans import ode_plan
from actors.trajectory import Cost, Outcome, Task
from tests.helpers.promised_workers import Worker

PLAN = ode_plan(1)
WEIGHTS = Exported((), Label(0, "abc", 0))
OUTCOME = Outcome(None, np.ones(1, bool), Cost())
WAIT_S = 10


def ready_worker(workers: list[Worker], node: str) -> Worker:
    """Another worker, which has loaded its model on this node."""
    worker = Worker()
    worker.node.promise.set_result(node)
    workers.append(worker)
    return worker


@pytest.fixture
def workers():
    return []


@pytest.fixture
def fleet(workers):
    """Two slots; a worker that dies is not replaced, as where it is a rank of the learner too."""

    def start(slot: int) -> Worker:
        if len(workers) == 2:
            raise LearnerLost("its process died")
        return ready_worker(workers, "node")

    fleet = Fleet(start, 2, 60, image_bytes=1, bytes_in_flight=100, end_worker=lambda worker: None)
    fleet.wait_ready(WAIT_S)
    yield fleet
    fleet.close()


def submit(fleet: Fleet, count: int) -> list[Future]:
    return [fleet.generate(Task(i, "a cat", (0, 0, i), 0), PLAN, WEIGHTS) for i in range(count)]


def promises(workers: list[Worker]) -> list[Future]:
    """The answers that each worker owes."""
    return [worker.asked.get(timeout=WAIT_S) for worker in workers]


def test_an_error_that_no_retry_fixes_ends_every_job(fleet, workers):
    jobs = submit(fleet, 3)
    dies, _ = promises(workers)
    dies.set_exception(ActorDiedError())
    for job in jobs:
        with pytest.raises(LearnerLost):
            job.result(WAIT_S)
    assert fleet.budget.reserved == 0


def test_requests_behind_one_that_raises_are_handled(fleet, workers):
    """While a callback holds up the fleet's thread, a death, a job and an answer come into its inbox in this order."""
    first, second = submit(fleet, 2)
    dies, answers = promises(workers)
    held, hold = Future(), Future()

    def wait(_: Future) -> None:
        held.set_result(None)
        hold.result(WAIT_S)

    third = submit(fleet, 1)[0]
    second.add_done_callback(wait)
    answers.set_result(OUTCOME)
    held.result(WAIT_S)
    dies.set_exception(ActorDiedError())
    later = submit(fleet, 1)[0]
    hold.set_result(None)
    for job in (first, third):
        with pytest.raises(LearnerLost):
            job.result(WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while not later.done() and time.monotonic() < deadline:
        with suppress(Empty):  # The worker may have been given the third job before.
            workers[1].asked.get(timeout=0.05).set_result(OUTCOME)
    later.result(0).images.release()
    second.result(WAIT_S).images.release()
    assert fleet.budget.reserved == 0


def test_the_end_of_the_drivers_node_ends_every_job_and_the_fleet(fleet, workers):
    jobs = submit(fleet, 3)
    dies, _ = promises(workers)
    dies.set_exception(SystemExit(0))
    for job in jobs:
        with pytest.raises(SystemExit):
            job.result(WAIT_S)
    assert fleet.budget.reserved == 0
    fleet.close()
    with pytest.raises(CancelledError):
        submit(fleet, 1)[0].result(WAIT_S)


def test_every_job_is_cancelled_when_the_fleet_closes(fleet, workers):
    jobs = submit(fleet, 3)
    promises(workers)
    fleet.close()
    for job in [*jobs, *submit(fleet, 1)]:
        with pytest.raises(CancelledError):
            job.result(WAIT_S)
    assert fleet.budget.reserved == 0


class Draining:
    """The nodes that are being drained, as a fleet asks for them all the time."""

    def __init__(self, monkeypatch) -> None:
        monkeypatch.setattr("actors.rollout.fleet.LOOK_S", 0.0)
        monkeypatch.setattr("actors.rollout.fleet.POLL_S", 0.01)
        self.nodes: list[str] = []
        self.looks: SimpleQueue[None] = SimpleQueue()

    def look(self) -> list[str]:
        self.looks.put(None)
        return self.nodes

    def become(self, *nodes: str) -> None:
        """Wait until the fleet has seen it."""
        self.nodes = list(nodes)
        for _ in range(self.looks.qsize() + 2):  # A look is handled when the next one begins.
            self.looks.get(timeout=WAIT_S)


def fleet_of_one(start, draining: Draining) -> Fleet:
    return Fleet(start, 1, 60, image_bytes=1, bytes_in_flight=100, look=draining.look, end_worker=lambda worker: None)


def test_a_worker_that_leaves_is_replaced_after_its_job_even_if_its_node_is_gone_by_then(monkeypatch, workers):
    """Ray no longer lists a node as draining once it is dead, which may be before the last answer is read."""

    def start(slot: int) -> Worker:
        return ready_worker(workers, f"node {len(workers) + 1}")

    draining = Draining(monkeypatch)
    fleet = fleet_of_one(start, draining)
    first, second = submit(fleet, 2)
    (answer,) = promises(workers)
    draining.become("node 1")
    draining.become()
    answer.set_result(OUTCOME)
    first.result(WAIT_S).images.release()
    deadline = time.monotonic() + WAIT_S
    while len(workers) == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(workers) == 2
    workers[1].asked.get(timeout=WAIT_S).set_result(OUTCOME)
    second.result(WAIT_S).images.release()
    fleet.close()


def test_the_last_answer_of_a_worker_that_leaves_counts_even_if_no_other_can_be_started(monkeypatch, workers):
    def start(slot: int) -> Worker:
        if workers:
            raise RuntimeError("no more workers")
        return ready_worker(workers, "node")

    draining = Draining(monkeypatch)
    fleet = fleet_of_one(start, draining)
    first, second = submit(fleet, 2)
    (answer,) = promises(workers)
    draining.become("node")
    answer.set_result(OUTCOME)
    first.result(WAIT_S).images.release()
    with pytest.raises(RuntimeError, match="no more workers"):
        second.result(WAIT_S)
    fleet.close()
