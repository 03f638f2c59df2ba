"""What roles ask for and get, and a learner that dies as it starts; without Ray."""

import logging

import pytest

from actors.learner.group import LearnerLate, LearnerLost
from services.base.errors import UserError
from system.launch.roles import Roles, ray
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
def test_roles_on_the_cpu_of_a_cluster_with_gpus_are_named(tmp_path, monkeypatch, caplog, overrides, gpus, said):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": float(gpus)})
    with caplog.at_level(logging.WARNING):
        Roles(load_config("shapes", overrides), [], tmp_path)._warn_of_idle_gpus()
    assert (said in caplog.text) if said else not caplog.text


class Group:
    """A learner that fails as it starts as the list says, and then starts."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.starts = list(failures), 0

    def join(self, timeout_s: float) -> None:
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
def test_a_learner_that_dies_as_it_starts_is_started_three_times(tmp_path, failures, starts, said):
    roles = Roles(load_config("shapes"), [], tmp_path)
    roles.learner = group = Group(*failures)
    if said is None:
        roles._wait_for_learner()
    else:
        with pytest.raises(UserError, match=said):
            roles._wait_for_learner()
    assert group.starts == starts
