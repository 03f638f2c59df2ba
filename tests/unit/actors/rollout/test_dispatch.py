"""Waiting jobs for workers of different speeds, against schedules by hand and an event loop."""

import heapq
import math

import pytest

from actors.rollout.dispatch import Pace, dispatch


def last_answer(jobs: int, seconds: list[float]) -> float:
    """When the last of the jobs is answered, if the free workers are asked again whenever one is done."""
    clock, waiting, running, free = 0.0, jobs, [], set(range(len(seconds)))
    while waiting or running:
        paces = {slot: Pace(seconds[slot], seconds[slot]) for slot in free}
        paces |= {slot: Pace(end - clock + seconds[slot], seconds[slot]) for end, slot in running}
        for slot in dispatch(waiting, paces, free):
            heapq.heappush(running, (clock + seconds[slot], slot))
            free.remove(slot)
            waiting -= 1
        clock, slot = heapq.heappop(running)
        free.add(slot)
    return clock


def test_equal_workers_take_the_first_jobs():
    paces = dict.fromkeys(range(4), Pace(4, 4))
    assert dispatch(3, paces, {0, 1, 2, 3}) == {0: 0, 1: 1, 2: 2}
    assert dispatch(0, paces, {2}) == {}


def test_a_worker_of_unknown_pace_takes_the_next_job_and_no_other():
    unknown = Pace(0, math.inf)
    assert dispatch(5, {0: Pace(4, 4), 1: unknown}, {0, 1}) == {1: 0, 0: 1}
    assert dispatch(5, {0: unknown, 1: unknown, 2: Pace(7, 4)}, {0, 1}) == {0: 0, 1: 1}


def test_a_slow_worker_takes_the_job_that_the_others_come_to_last_or_none():
    """The busy worker answers after 5, 9, 13, 17 and 21 seconds, the free one after 20."""
    paces = {0: Pace(20, 20), 1: Pace(5, 4)}
    assert dispatch(4, paces, {0}) == {}
    assert dispatch(5, paces, {0}) == {0: 4}


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
