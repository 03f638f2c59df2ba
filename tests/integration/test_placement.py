"""Roles on the nodes of a cluster that their labels ask for."""

import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from tests.helpers.command_line import run_cli

pytestmark = pytest.mark.slow
ROLES = {"RolloutWorker": "rollout", "LearnerWorker": "learner", "scorer-size": "reward"}


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of a head with a token. Whether the tests before started a Ray with one makes no difference."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_each_role_is_placed_by_its_labels(cluster, recipe, tmp_path):
    nodes = {role: cluster.add_node(num_cpus=1, labels={"role": role}).node_id for role in ROLES.values()}
    labels = ["rollout.labels.role=rollout", "learner.labels.role=learner", "scorers.0.labels.role=reward"]
    done = run_cli("train", recipe, "name=labels", "steps=1", *labels, folder=tmp_path, address=cluster.address)
    assert done.returncode == 0, done.stderr
    ray.init(address=cluster.address, log_to_driver=False)
    found = {
        (role, actor["Address"]["NodeID"])
        for actor in actors().values()
        for kind, role in ROLES.items()
        if kind in actor["ActorClassName"]
    }
    assert found == set(nodes.items())
