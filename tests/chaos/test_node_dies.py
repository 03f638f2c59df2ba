"""A node that dies with its workers and what their objects hold: the run goes on, and its weights are the same bits."""

import random
import time

import numpy as np
import pytest
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster

from actors.learner.remote import RemoteLearner
from actors.learner.settings import LearnerSettings
from actors.lost import Lost
from actors.reward.pool import RewardPool
from services.scoring.settings import ScorerSettings
from tests.helpers.disturbed_runs import Run
from tests.helpers.processes import family

LARGE = ["policy.height=32", "policy.width=32", "plan.seeds=8", "plan.explorations=8"]
"""Images and experience of a task that lie in the store of the node that made them; small ones are the driver's."""

HEAD = {"num_cpus": 2, "resources": {"head": 9}, "include_dashboard": False}


@pytest.fixture
def cluster(monkeypatch):
    """A head for learner and scorers, and two nodes of which either has room for the rollout workers."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    for _ in range(2):
        cluster.add_node(num_cpus=1, labels={"role": "rollout"})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@ray.remote(num_cpus=0, resources={"doomed": 1})
class Maker:
    def make(self) -> bytes:
        return bytes(2**20)


@ray.remote(num_cpus=0, resources={"head": 1})
class Rank:
    def update(self, advantages, behaviour, *experience):
        """A rank whose task another rank has waits for it, as in a collective."""
        if experience == (None,):
            time.sleep(600)


class Handle:
    """Of a scorer, as Serve's: an actor's method that takes the images."""

    def __init__(self) -> None:
        self.rank = Rank.remote()

    @property
    def score(self):
        return self

    def remote(self, images, prompts, start, run, rows):
        self.answer = self.rank.update.remote([], 0, images)
        return self

    def result(self, timeout_s):
        return ray.get(self.answer, timeout=timeout_s)


@pytest.mark.chaos
def test_what_lay_on_a_lost_node_is_known_to_be_lost(cluster):
    ray.init(address=cluster.address, log_to_driver=False)
    node = cluster.add_node(num_cpus=1, resources={"doomed": 1})
    made = Maker.remote().make.remote()
    ray.wait([made], timeout=60, fetch_local=False)
    cluster.remove_node(node, allow_graceful=False)
    learner = RemoteLearner(lambda rank: Rank.remote(), LearnerSettings(ranks=2), 60)
    with pytest.raises(Lost):
        learner.update([made], [], 0)
    scorer = ScorerSettings(name="size", scorer="jpeg_size")
    with pytest.raises(Lost):
        RewardPool({"size": Handle()}, [scorer], 1).score(made, ["a"], ["size"], np.ones(1, bool)).result(60)


def raylet(node: Node) -> int:
    return node.all_processes["raylet"][0].process.pid


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_a_run_whose_rollout_node_dies_has_the_same_bits(recipe, undisturbed, cluster, request, seed):
    whole = undisturbed(*LARGE)
    overrides = [*LARGE, "rollout.labels={role: rollout}"]
    robbed = Run(recipe, "robbed", overrides, cluster.address, {"RAY_AUTH_MODE": "disabled"})
    robbed.start()
    request.addfinalizer(robbed.end)
    robbed.wait_for_a_moment(random.Random(seed))
    node = next(node for node in cluster.worker_nodes if family(raylet(node), "ray::RolloutWorker"))
    cluster.remove_node(node, allow_graceful=False)
    print(f"took {robbed.finish():.0f} s")
    robbed.assert_equals(whole)
