"""The slots of a fleet over workers that are futures in the test's hands. No Ray and no thread."""

import pytest
from ray.exceptions import ActorDiedError

from actors.rollout.slots import MAX_DEATHS_AT_START, Slot, Slots
from services.base.errors import UserError
from tests.helpers.promised_workers import Worker

NOW = 0.0


class Crew:
    """Slots, the workers that they have started and ended, and the news that have not been handled."""

    def __init__(self, needed: int, more: int = 0, alive: dict[int, Worker] | None = None) -> None:
        self.started: list[tuple[int, Worker]] = []
        self.ended: list[Worker] = []
        self.news: list = []
        self.slots = Slots(self._start, self.ended.append, needed, more, self.news.append, alive or {})

    def _start(self, number: int) -> Worker:
        self.started.append((number, Worker()))
        return self.started[-1][1]

    def loads(self, worker: Worker, node: str = "node") -> None:
        worker.node.promise.set_result(node)
        self.handle()

    def dies(self, worker: Worker, error: Exception | None = None) -> None:
        worker.node.promise.set_exception(error or ActorDiedError())
        self.handle()

    def handle(self) -> None:
        while self.news:
            self.news.pop(0)()

    def joined(self) -> dict[int, Worker]:
        return {slot.number: slot.worker for slot in self.slots.joined()}

    def slot(self, number: int) -> Slot:
        return next(slot for slot in self.slots.joined() if slot.number == number)


def crew_of(*nodes: str) -> Crew:
    """Ready workers on these nodes."""
    crew = Crew(len(nodes))
    for (_, worker), node in zip(list(crew.started), nodes, strict=True):
        crew.loads(worker, node)
    return crew


def test_a_worker_takes_jobs_once_it_has_loaded_and_the_run_begins_once_all_that_it_needs_have():
    crew = Crew(2, more=1)
    (_, first), (_, second), (_, further) = crew.started
    crew.loads(further)
    crew.loads(second)
    assert crew.joined() == {1: second, 2: further}
    assert [slot.number for slot in crew.slots.takers(5, NOW)] == [1, 2]
    with pytest.raises(UserError, match="rollout workers 0 have not started within 0 s"):
        crew.slots.wait_ready(0)
    crew.loads(first)
    crew.slots.wait_ready(0)


def test_a_worker_that_dies_as_it_starts_is_started_again_until_the_run_gives_up():
    crew = Crew(1)
    for deaths in range(1, MAX_DEATHS_AT_START + 1):
        assert len(crew.started) == deaths
        crew.dies(crew.started[-1][1])
    assert len(crew.started) == MAX_DEATHS_AT_START
    with pytest.raises(UserError, match="rollout worker 0 died 3 times as it started"):
        crew.slots.wait_ready(0)
    assert crew.slots.replaced == 0


def test_the_run_never_gives_up_on_a_worker_that_it_does_not_need():
    crew = Crew(1, more=1)
    crew.loads(crew.started[0][1])
    for _ in range(2 * MAX_DEATHS_AT_START):
        crew.dies(crew.started[-1][1], UserError("no such model"))
    assert [number for number, _ in crew.started] == [0] + [1] * (1 + 2 * MAX_DEATHS_AT_START)
    crew.slots.wait_ready(0)


def test_a_worker_that_refuses_to_start_is_not_started_again():
    crew = Crew(1)
    crew.dies(crew.started[0][1], UserError("no such model"))
    assert len(crew.started) == 1
    with pytest.raises(UserError, match="no such model"):
        crew.slots.wait_ready(0)


def test_a_given_worker_that_dies_as_it_starts_is_replaced_by_the_one_that_is_adopted():
    given, adopted = Worker(), Worker()
    crew = Crew(1, alive={0: given})
    crew.dies(given)
    assert crew.joined() == {}
    crew.slots.adopt(0, adopted, "node")
    assert (crew.joined(), crew.started) == ({0: adopted}, [])
    crew.slots.wait_ready(0)


def test_news_of_a_worker_whose_slot_has_another_one_change_nothing():
    crew = crew_of("node")
    old = crew.slot(0)
    crew.slots.begins(old, NOW)
    crew.slots.lost(old, TimeoutError("no answer"))
    assert (crew.ended, crew.slots.replaced, len(crew.started)) == ([old.worker], 1, 2)
    crew.slots.lost(old, TimeoutError("no answer"))
    assert (crew.ended, crew.slots.replaced, len(crew.started)) == ([old.worker], 1, 2)
    crew.loads(crew.started[1][1])
    new = crew.slot(0)
    crew.slots.begins(new, NOW)
    crew.slots.ends(old, NOW, typical=False)
    assert crew.slots.takers(1, NOW) == {}
    crew.slots.ends(new, NOW, typical=False)
    assert crew.slots.takers(1, NOW) == {new: 0}


def test_a_free_worker_on_a_drained_node_ends_at_once_and_a_busy_one_after_its_job():
    crew = crew_of("stays", "drained", "drained")
    stays, free, busy = crew.slots.joined()
    crew.slots.begins(busy, NOW)
    crew.slots.drain(["drained"])
    assert crew.ended == [free.worker]
    assert crew.joined() == {0: stays.worker, 2: busy.worker}
    assert crew.slots.takers(5, NOW) == {stays: 0}
    crew.slots.drain([])
    crew.slots.ends(busy, NOW, typical=True)
    assert crew.ended == [free.worker, busy.worker]
    assert [number for number, _ in crew.started] == [0, 1, 2, 1, 2]
    assert crew.slots.replaced == 0
