"""SIGKILL for the learner, or one of its ranks, while a run goes on: the weights are those of an undisturbed run."""

import random

import pytest

from tests.helpers.disturbed_runs import Run
from tests.helpers.processes import family
from tests.helpers.run_folders import metrics

SPLIT = ["rollout.workers=1"]
RANKS, COLOCATED = ["learner.ranks=2"], ["learner.ranks=2", "placement=colocated"]
STALE = ["learner.max_staleness=2"]
LEARNERS = ("ray::LearnerWorker", "ray::ColocatedWorker")


@pytest.mark.parametrize(
    ("overrides", "seed"),
    [
        (SPLIT, 0),
        pytest.param(SPLIT, 1, marks=pytest.mark.chaos),
        *(
            pytest.param(overrides, seed, marks=pytest.mark.chaos)
            for overrides in (COLOCATED, STALE)
            for seed in (0, 1)
        ),
        *(pytest.param(RANKS, seed, marks=pytest.mark.chaos) for seed in range(6)),
    ],
)
def test_a_killed_rank_costs_time_and_nothing_else(recipe, ray_head, undisturbed, request, overrides, seed):
    whole = undisturbed(*overrides)
    chance = random.Random(seed)
    killed = Run(recipe, "killed", overrides, ray_head.address)
    killed.start()
    request.addfinalizer(killed.end)
    killed.wait_for_a_moment(chance)
    chance.choice(family(ray_head.pid, *LEARNERS)).kill()
    print(f"took {killed.finish():.0f} s")

    killed.assert_equals(whole)
    assert metrics(killed.path)[-1]["learner_restarts"] == 1
    assert not family(ray_head.pid, *LEARNERS)
