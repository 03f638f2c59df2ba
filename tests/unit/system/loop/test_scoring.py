"""Scoring what is generated: each end of either part is the end of both, and images are always released."""

import contextlib
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from actors.reward.scores import Scores
from actors.rollout.images import ByteBudget, Images
from actors.rollout.results import Sampled
from system.loop.scoring import scored

SCORES = Scores({"a": np.ones(1)})


class Rewards:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.scoring: Future[Scores] = Future()
        self.asked = []

    def score(self, *arguments):
        self.asked.append(arguments)
        return self.scoring


@pytest.fixture
def budget():
    budget = ByteBudget(10)
    budget.reserve(10)
    return budget


def job(budget: ByteBudget) -> Sampled:
    return Sampled(Images(np.zeros((1, 2, 2, 3)), 10, budget, np.copy), np.ones(1, bool))


def test_images_are_scored_once_they_exist_and_released_once_they_are_scored(budget):
    generated, rewards, seen = Future(), Rewards(), []
    outcome = scored(generated, rewards, ["x"], ["a"], lambda done: seen.append(done.images.pixels().shape))
    assert not rewards.asked
    done = job(budget)
    generated.set_result(done)
    (images, prompts, names, *_) = rewards.asked[0]
    assert (images.shape, prompts, names) == ((1, 2, 2, 3), ["x"], ["a"])
    assert budget.reserved == 10
    rewards.scoring.set_result(SCORES)
    assert outcome.result(0) == (done, SCORES)
    assert seen == [(1, 2, 2, 3)]
    assert budget.reserved == 0
    with pytest.raises(RuntimeError, match="are released"):
        done.images.pixels()


def test_what_is_not_generated_is_not_scored(budget):
    for end, raised in ((lambda f: f.set_exception(ValueError("no")), ValueError), (cancel, CancelledError)):
        generated, rewards = Future(), Rewards()
        outcome = scored(generated, rewards, ["x"], ["a"])
        end(generated)
        with pytest.raises(raised):
            outcome.result(0)
        assert not rewards.asked


def test_an_error_or_a_cancelled_score_releases_the_images_and_ends_the_job(budget):
    for end, raised in ((lambda f: f.set_exception(ValueError("no")), ValueError), (cancel, CancelledError)):
        generated, rewards = Future(), Rewards()
        outcome = scored(generated, rewards, ["x"], ["a"], before_release=lambda done: pytest.fail("not scored"))
        generated.set_result(job(budget))
        end(rewards.scoring)
        with pytest.raises(raised):
            outcome.result(0)
        assert budget.reserved == 0
        budget.reserve(10)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_an_error_before_the_release_releases_the_images_and_ends_the_job(budget, error):
    """Also the error that Ray raises when the driver's node is lost: nobody may wait for the job for ever."""

    def look(done: Sampled) -> None:
        raise error("no")

    generated, rewards = Future(), Rewards()
    outcome = scored(generated, rewards, ["x"], ["a"], before_release=look)
    generated.set_result(job(budget))
    with contextlib.suppress(SystemExit):  # It ends the thread that resolves the scores, if it is not caught.
        rewards.scoring.set_result(SCORES)
    with pytest.raises(error):
        outcome.result(0)
    assert budget.reserved == 0


def test_rewards_that_take_no_job_release_its_images(budget):
    class Closed:
        def score(self, *arguments):
            raise RuntimeError("closed")

    generated = Future()
    outcome = scored(generated, Closed(), ["x"], ["a"])
    generated.set_result(job(budget))
    with pytest.raises(RuntimeError, match="closed"):
        outcome.result(0)
    assert budget.reserved == 0


def cancel(future: Future) -> None:
    future.cancel()
    future.set_running_or_notify_cancel()
