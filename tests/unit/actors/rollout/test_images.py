"""The bound on bytes in flight, and images that hold their share of it."""

import numpy as np

from actors.rollout.images import ByteBudget, Images


def test_a_single_job_may_exceed_the_bound_when_nothing_else_is_in_flight():
    budget = ByteBudget(5)
    assert budget.reserve(10)
    assert not budget.reserve(1)
    budget.release(10)
    assert budget.reserve(5)
    assert not budget.reserve(1)


def test_the_peak_starts_again_from_what_is_reserved():
    budget = ByteBudget(10)
    budget.reserve(4)
    budget.reserve(5)
    budget.release(5)
    assert budget.take_peak() == 9
    assert budget.take_peak() == 4


def test_images_give_their_bytes_back_once_and_say_so():
    told = []
    budget = ByteBudget(10, lambda: told.append(budget.reserved))
    budget.reserve(10)
    images = Images(np.zeros(3), 10, budget, np.copy)
    images.release()
    images.release()
    assert (budget.reserved, told, images.released) == (0, [0], True)
