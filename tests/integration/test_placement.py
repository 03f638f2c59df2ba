"""Roles on the nodes of a cluster that their labels ask for."""

import subprocess
import sys

import pytest
import ray
from ray._private.state import actors
from ray.cluster_utils import Cluster

from tests.helpers.command_line import RUN_TIMEOUT_S, environment

pytestmark = pytest.mark.slow
ROLES = {"RolloutWorker": "rollout", "LearnerWorker": "learner", "scorer-size": "reward"}


def test_each_role_is_placed_by_its_labels(recipe, tmp_path, monkeypatch):
    """The cluster has no token, so neither has the driver: Ray takes a driver that asks for one for dead."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = {role: cluster.add_node(num_cpus=1, labels={"role": role}).node_id for role in ROLES.values()}
    labels = ["rollout.labels.role=rollout", "learner.labels.role=learner", "scorers.0.labels.role=reward"]
    done = subprocess.run(
        [sys.executable, "-m", "system", "train", recipe, "name=labels", "steps=1", *labels],
        cwd=tmp_path,
        env=environment() | {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    ray.init(address=cluster.address, log_to_driver=False)
    found = {
        (role, actor["Address"]["NodeID"])
        for actor in actors().values()
        for kind, role in ROLES.items()
        if kind in actor["ActorClassName"]
    }
    ray.shutdown()
    cluster.shutdown()
    assert found == set(nodes.items())
