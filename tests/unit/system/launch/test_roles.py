"""What roles ask for and get, and a learner that dies as it starts; without Ray."""

import logging

import pytest

from actors.lost import LearnerLate, LearnerLost
from services.base.errors import UserError
from system.launch import cluster
from system.launch.placement import Placement
from system.launch.roles import gpus_asked, start_learner
from system.recipe.load import load_config


@pytest.mark.parametrize(
    ("overrides", "gpus", "said"),
    [
        ([], 8, "on the CPU: rollout, learner, scorer pickscore; the cluster has 8 GPUs"),
        (["rollout.num_gpus=1", "scorers.0.num_gpus=0.1"], 8, "on the CPU: learner; the cluster"),
        (["rollout.num_gpus=1", "placement=colocated", "scorers.0.num_gpus=0.1"], 8, None),
        (
            ["learner.num_gpus=1", "placement=colocated", "scorers.0.num_gpus=0.1"],
            8,
            "on the CPU: further rollout workers; the cluster",
        ),
        ([], 0, None),
    ],
)
def test_roles_on_the_cpu_of_a_cluster_with_gpus_are_named(monkeypatch, caplog, overrides, gpus, said):
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": float(gpus)})
    config = load_config("shapes", overrides)
    with caplog.at_level(logging.WARNING):
        cluster.warn_of_idle_gpus(gpus_asked(config, learns=True), config.scorers)
    assert (said in caplog.text) if said else not caplog.text


class Group:
    """A learner that fails as it starts as the list says, and then starts."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.starts = list(failures), 0

    def join(self, timeout_s: float = 0) -> None:
        self.starts += 1
        if self.failures:
            raise self.failures.pop(0)

    restart = join


@pytest.mark.parametrize(
    ("failures", "starts", "said"),
    [
        ([LearnerLost("killed")] * 2, 3, None),
        ([LearnerLost("killed")] * 3, 3, "the learner died 3 times as it started: killed"),
        ([LearnerLost("killed"), LearnerLate("late")], 2, "has not started within 900 s"),
        ([UserError("policy.adapter: no")], 1, "policy.adapter: no"),
    ],
)
def test_a_learner_that_dies_as_it_starts_is_started_three_times(failures, starts, said):
    group = Group(*failures)
    if said is None:
        start_learner(group, 900)
    else:
        with pytest.raises(UserError, match=said):
            start_learner(group, 900)
    assert group.starts == starts


@pytest.mark.parametrize(
    ("overrides", "learns", "places"),
    [
        ([], True, [(0.4, 0), (0.4, 0), (0.6, 1)]),
        ([], False, [(0.4, 0), (0.4, 0)]),
        (["placement=colocated"], True, [(0.6, 1), (0.4, 0)]),
        (["placement=colocated"], False, [(0.4, 0), (0.4, 0)]),
        (["placement=colocated", "learner.ranks=2"], True, [(0.6, 1), (0.6, 1)]),
    ],
)
def test_each_worker_and_rank_has_a_place_and_a_colocated_one_serves_both(overrides, learns, places):
    config = load_config("shapes", ["learner.num_cpus=0.6", "learner.num_gpus=1", *overrides])
    assert [(place.num_cpus, place.num_gpus) for place in Placement(config, learns).places] == places
