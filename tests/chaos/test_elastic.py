"""Rollout workers that come and go with the nodes of a cluster."""

import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.lost import Lost
from actors.rollout.fleet import Fleet
from actors.rollout.results import Generated
from actors.trajectory import Task
from system.launch.roles import draining_nodes
from tests.helpers.fake_workers import PLAN, LargeWorker, PacedWorker, exported, fleet_of

TASK_S = 0.2
JOIN_S = 120


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def submit(fleet: Fleet, version: int, tasks: int) -> list[Future[Generated]]:
    """One training step's tasks, with its weights."""
    weights = exported(version)
    return [fleet.generate(Task(i, "", (0, 0, i), version), PLAN, weights) for i in range(tasks)]


def step(fleet: Fleet, version: int, tasks: int = 20) -> Counter[int]:
    """How many of a training step's tasks each process did."""
    return Counter(pid_of(future) for future in submit(fleet, version, tasks))


def pid_of(future: Future[Generated]) -> int:
    """The process that did a task, whose images are released."""
    done = future.result(60)
    done.images.release()
    return done.tree


def grow(fleet: Fleet, workers: int) -> None:
    """Work until so many have joined."""
    deadline = time.monotonic() + JOIN_S
    while len(fleet.workers) < workers:
        assert time.monotonic() < deadline
        step(fleet, 1)


@pytest.mark.chaos
def test_workers_join_a_new_node_and_a_lost_node_costs_its_tasks_only_time(cluster):
    fleet = fleet_of(lambda slot: PacedWorker.options(resources={"spot": 1} if slot else {}).remote(TASK_S), 1, more=2)
    assert len(step(fleet, 0)) == 1

    node = cluster.add_node(num_cpus=1, resources={"spot": 2})
    grow(fleet, 3)
    grown = step(fleet, 2, 60)
    assert len(grown) == 3
    assert min(grown.values()) > 5

    futures = submit(fleet, 3, 30)
    for future in futures[:5]:
        future.result(60)
    cluster.remove_node(node)
    for future in futures:
        future.result(60)
    assert len(fleet.workers) == 1

    cluster.add_node(num_cpus=1, resources={"spot": 1})
    grow(fleet, 2)
    assert len(step(fleet, 4, 60)) == 2
    fleet.close()


@pytest.mark.chaos
def test_images_that_a_lost_node_held_are_lost(cluster):
    """The trainer repeats the steps since the latest checkpoint for this error, and for no other."""
    node = cluster.add_node(num_cpus=1, resources={"spot": 1})
    fleet = fleet_of(lambda slot: LargeWorker.options(resources={"spot": 1}).remote(), 1)
    images = submit(fleet, 0, 1)[0].result(60).images
    cluster.remove_node(node)
    with pytest.raises(Lost):
        images.pixels()
    fleet.close()


@pytest.mark.chaos
def test_a_worker_on_a_drained_node_finishes_its_task_and_leaves(cluster):
    """What SIGTERM to a spot node's `ray start --block` begins: no task is lost, and none comes there again."""
    fleet = fleet_of(
        lambda slot: PacedWorker.options(resources={"spot": 1} if slot else {}).remote(TASK_S),
        1,
        more=1,
        look=draining_nodes,
    )
    node = cluster.add_node(num_cpus=1, resources={"spot": 1})
    grow(fleet, 2)
    assert len(step(fleet, 0, 60)) == 2
    futures = submit(fleet, 1, 200)
    futures[5].result(60)
    where = ["--address", cluster.address, "--node-id", node.node_id]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "30"]
    command = [Path(sys.executable).parent / "ray", "drain-node", *where, *why]
    drained = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert drained.returncode == 0, drained.stderr
    pids = [pid_of(future) for future in futures]
    assert set(pids[-20:]) == {pids[-1]}
    assert len(set(pids)) == 2
    assert (len(fleet.workers), fleet.replaced) == (1, 0)
    fleet.close()
