"""The unfinished jobs of a fleet and their bytes. No Ray and no thread."""

from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest

from actors.rollout.images import ByteBudget, Images
from actors.rollout.jobs import MAX_DEATHS_PER_JOB, Attempt, Job, Jobs

BYTES = 10


@pytest.fixture
def jobs():
    return Jobs(ByteBudget(2 * BYTES))


def new_job(jobs: Jobs) -> Job:
    job = Job(start=None, answer=None, weights=None, num_bytes=BYTES, typical=True)
    jobs.add(job)
    return job


def begin(jobs: Jobs, job: Job, now: float = 0.0) -> Attempt:
    """Give a job to a worker."""
    assert jobs.reserve(job)
    attempt = Attempt(job, None, [], None, now)
    jobs.begin(attempt)
    return attempt


def images(jobs: Jobs) -> Images:
    return Images("reference", BYTES, jobs.budget, lambda reference: reference)


def test_a_finished_job_leaves_its_bytes_to_its_images(jobs):
    attempt = begin(jobs, new_job(jobs))
    assert (list(jobs.waiting), list(jobs.running)) == ([], [attempt])
    assert jobs.end(attempt)
    jobs.finish(attempt.job, SimpleNamespace(images=images(jobs)))
    assert (jobs.budget.reserved, attempt.job.holds_bytes) == (BYTES, False)
    attempt.job.future.result(0).images.release()
    assert jobs.budget.reserved == 0


def test_an_attempt_ends_once(jobs):
    attempt = begin(jobs, new_job(jobs))
    assert [jobs.end(attempt), jobs.end(attempt)] == [True, False]


def test_no_bytes_are_reserved_beyond_the_budget_and_none_twice(jobs):
    first, second, third = (new_job(jobs) for _ in range(3))
    assert [jobs.reserve(job) for job in (first, second, third, second)] == [True, True, False, True]
    assert jobs.budget.reserved == 2 * BYTES


def test_a_job_whose_worker_was_lost_is_the_next_and_keeps_its_bytes_until_it_has_lost_too_many(jobs):
    job, later = new_job(jobs), new_job(jobs)
    for _ in range(MAX_DEATHS_PER_JOB - 1):
        jobs.end(begin(jobs, job))
        jobs.lost(job, TimeoutError("no answer"))
        assert list(jobs.waiting) == [job, later]
        assert jobs.budget.reserved == BYTES
    jobs.end(begin(jobs, job))
    jobs.lost(job, TimeoutError("no answer"))
    assert list(jobs.waiting) == [later]
    assert jobs.budget.reserved == 0
    with pytest.raises(RuntimeError, match="3 rollout workers died on one task; the last one: no answer"):
        job.future.result(0)


def test_the_attempts_before_a_time_are_found(jobs):
    first, second = (begin(jobs, new_job(jobs), now) for now in (1.0, 2.0))
    assert jobs.begun_before(1.0) == []
    assert jobs.begun_before(2.0) == [first]
    assert jobs.begun_before(3.0) == [first, second]


def test_a_job_that_its_caller_has_cancelled_gives_its_bytes_back_whatever_becomes_of_it(jobs):
    fails, finishes = begin(jobs, new_job(jobs)), begin(jobs, new_job(jobs))
    for attempt in (fails, finishes):
        jobs.end(attempt)
        attempt.job.future.cancel()
    jobs.fail(fails.job, ValueError("no such prompt"))
    jobs.finish(finishes.job, SimpleNamespace(images=images(jobs)))
    assert jobs.budget.reserved == 0


def test_waiting_jobs_are_cancelled_and_running_ones_are_not(jobs):
    running, again, waiting = new_job(jobs), new_job(jobs), new_job(jobs)
    begin(jobs, running)
    jobs.end(begin(jobs, again))
    jobs.lost(again, TimeoutError("no answer"))
    jobs.cancel_waiting()
    for job in (again, waiting):
        with pytest.raises(CancelledError):
            job.future.result(0)
    assert not running.future.done()
    assert jobs.budget.reserved == BYTES


@pytest.mark.parametrize("error", [None, RuntimeError("the storage failed")])
def test_every_unfinished_job_can_be_cancelled_or_fail(jobs, error):
    running, waiting = new_job(jobs), new_job(jobs)
    attempt = begin(jobs, running)
    if error is None:
        jobs.cancel_all()
    else:
        jobs.fail_all(error)
    for job in (running, waiting):
        with pytest.raises(CancelledError if error is None else RuntimeError):
            job.future.result(0)
    assert not jobs.end(attempt)
    assert not jobs.waiting
    assert jobs.budget.reserved == 0
