"""Waiting jobs for workers of different speeds, against schedules by hand, list scheduling and an event loop."""

import heapq
import math

import numpy as np
import pytest

from actors.rollout.assigner import TRY_AGAIN_AFTER, Assigner, SlotState


def measured(seconds: list[float]) -> Assigner:
    """Free workers whose last job, which ended at time 0, took so long."""
    assigner = Assigner(len(seconds))
    for slot, took in enumerate(seconds):
        assigner.joins(slot)
        if not math.isnan(took):
            assigner.begins(slot, -took)
            assigner.ends(slot, 0, typical=True)
    return assigner


def last_answer(jobs: int, seconds: list[float]) -> float:
    """When the last of the jobs is answered, if the free workers are asked again whenever one is done."""
    assigner, now, running = measured(seconds), 0.0, []
    while jobs or running:
        for slot in assigner.takers(jobs, now):
            assigner.begins(slot, now)
            heapq.heappush(running, (now + seconds[slot], slot))
            jobs -= 1
        now, slot = heapq.heappop(running)
        assigner.ends(slot, now, typical=True)
    return now


def list_scheduling(waiting: int, first: dict[int, float], then: dict[int, float], free: set[int]) -> dict[int, int]:
    """The first job of each free worker: a job goes to the worker that would answer it first."""
    answers = [(answer, slot) for slot, answer in first.items()]
    heapq.heapify(answers)
    taken: dict[int, int] = {}
    for job in range(waiting):
        answer, slot = heapq.heappop(answers)
        if slot in free:
            taken.setdefault(slot, job)
        heapq.heappush(answers, (answer + then[slot], slot))
    return taken


def test_equal_workers_take_the_first_jobs():
    assert measured([4] * 4).takers(3, 0) == {0: 0, 1: 1, 2: 2}
    assert measured([4] * 4).takers(0, 0) == {}


def test_a_worker_of_unknown_pace_takes_the_next_job_and_no_other():
    unknown = math.nan
    assert measured([4, unknown]).takers(5, 0) == {1: 0, 0: 1}
    assert measured([unknown, unknown, 7]).takers(5, 0) == {0: 0, 1: 1, 2: 2}
    assert measured([4, unknown]).takers(1, 0) == {1: 0}


def test_a_slow_worker_takes_the_job_that_the_others_come_to_last_or_none():
    """The busy worker answers after 5, 9, 13, 17 and 21 seconds, the free one after 20."""
    assigner = measured([20, 4])
    assigner.begins(1, 0)
    assert assigner.takers(4, 3.0) == {}
    assert assigner.takers(5, 3.0) == {0: 4}


def test_a_worker_that_takes_longer_than_before_is_believed_to_be_slow():
    assigner = measured([4, 1])
    assigner.begins(1, 0)
    assert assigner.takers(3, 0.5) == {}  # the busy one would answer after 1.5, 2.5 and 3.5 seconds
    assert assigner.takers(3, 3.0) == {0: 1}  # it hangs: it would answer after 3, 6 and 9 seconds


def test_a_slow_worker_is_measured_again_after_a_long_time_without_work():
    assigner = measured([4, 1])
    assigner.begins(1, TRY_AGAIN_AFTER * 4)
    assert assigner.takers(1, TRY_AGAIN_AFTER * 4) == {}
    assert assigner.takers(1, TRY_AGAIN_AFTER * 4 + 0.1) == {0: 0}


def test_a_worker_that_leaves_takes_no_job_and_counts_for_nothing():
    assigner = measured([4, 1, 1])
    assigner.leaves(1)
    assigner.begins(2, 0)
    assigner.leaves(2)
    assigner.ends(2, 1, typical=True)
    assert assigner.state_S.tolist() == [SlotState.FREE, SlotState.LEAVING, SlotState.LEAVING]
    assert assigner.takers(1, 1) == {0: 0}
    assigner.joins(1)
    assert assigner.takers(1, 1) == {1: 0}


def test_the_takers_are_those_of_list_scheduling():
    rng = np.random.default_rng(0)
    fewer = 0
    for _ in range(400):
        count, now = int(rng.integers(1, 12)), 100.0
        seconds = rng.uniform(1, 20, count).tolist()
        assigner, first, then = measured(seconds), {}, {}
        for slot, took in enumerate(seconds):
            if rng.random() < 0.5:
                elapsed = float(rng.uniform(0, 1.5 * took))
                assigner.begins(slot, now - elapsed)
                then[slot] = max(took, elapsed)
                first[slot] = 2 * then[slot] - elapsed
            else:
                first[slot], then[slot] = (0.0 if now > TRY_AGAIN_AFTER * took else took), took
        waiting, free = int(rng.integers(0, 20)), set(np.flatnonzero(assigner.state_S == SlotState.FREE).tolist())
        takers = assigner.takers(waiting, now)
        assert takers == list_scheduling(waiting, first, then, free)
        fewer += len(takers) < min(waiting, len(free))
    assert fewer > 50  # many of the cases leave a slow worker without a job


@pytest.mark.parametrize(
    ("jobs", "seconds", "best"),
    [
        (128, [4.0] * 58 + [20.0] * 6, 12.0),  # first come first served: 20
        (2, [1.0, 5.0], 2.0),
        (5, [1.0, 5.0], 5.0),
        (6, [1.0, 5.0], 5.0),
        (7, [2.0, 3.0], 9.0),
    ],
)
def test_the_last_answer_comes_as_early_as_it_can(jobs, seconds, best):
    assert last_answer(jobs, seconds) == best
