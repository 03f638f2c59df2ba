"""What is killed, stopped or gone while a run goes on: the weights are those of an undisturbed run."""

import random
import signal
import subprocess
import time

import psutil
import pytest

from tests.helpers.command_line import RUN_TIMEOUT_S
from tests.helpers.disturbed_runs import Run, one_quick
from tests.helpers.processes import family
from tests.helpers.recipes import ONE_PROCESS
from tests.helpers.run_folders import metrics

WORKER, REPLICA, CONTROLLER = "ray::RolloutWorker", "scorer-size", "ray::ServeController"
GONE_S = 20
OVERRIDE = "rollout.task_timeout_s=10"


@pytest.fixture
def disturbed(recipe, ray_head, request):
    """Starts a run that will be disturbed."""

    def start(*overrides: str) -> Run:
        run = Run(recipe, "other", [OVERRIDE, *overrides], ray_head.address)
        run.start()
        request.addfinalizer(run.end)
        return run

    return start


@pytest.fixture
def whole(undisturbed):
    """The folder of a run in which nothing fails. Its bits do not depend on the placement."""
    return undisturbed(OVERRIDE)


@pytest.mark.parametrize(
    ("number", "seed"), one_quick((number, seed) for number in (signal.SIGKILL, signal.SIGSTOP) for seed in range(3))
)
def test_a_rollout_worker_is_replaced(disturbed, whole, ray_head, number, seed):
    """One that hangs is noticed within `rollout.task_timeout_s` of its task's start."""
    other, chance = disturbed(), random.Random(seed)
    other.wait_for_a_moment(chance)
    chance.choice(family(ray_head.pid, WORKER)).send_signal(number)
    print(f"took {other.finish():.0f} s")
    other.assert_equals(whole)
    assert metrics(other.path)[-1]["workers_replaced"] <= 1


@pytest.mark.parametrize(("gone_s", "seed"), one_quick((gone_s, seed) for gone_s in (0, GONE_S) for seed in range(3)))
def test_a_reward_replica_comes_back_and_the_step_waits(disturbed, whole, ray_head, gone_s, seed):
    """Gone: the controller that would replace it stands still as long."""
    other = disturbed(*ONE_PROCESS)
    other.wait_for_a_moment(random.Random(seed))
    controller = family(ray_head.pid, CONTROLLER)
    if gone_s:
        controller[0].suspend()
    for replica in family(ray_head.pid, REPLICA):
        replica.kill()
    if gone_s:
        time.sleep(gone_s)
        controller[0].resume()
    print(f"took {other.finish():.0f} s")
    other.assert_equals(whole)
    assert sum(line["holes"] for line in metrics(other.path)[1:]) == 0


@pytest.mark.parametrize("seed", one_quick(range(3)))
def test_a_killed_driver_leaves_nothing_behind_and_the_resumed_run_goes_on(disturbed, whole, ray_head, seed):
    other = disturbed(*(ONE_PROCESS if seed == 0 else ()))
    other.wait_for_a_moment(random.Random(seed))
    other.end()
    done = len(metrics(other.path)) - 1
    other.start("--resume")
    print(f"resumed after {done} steps, took {other.finish():.0f} s")
    other.assert_equals(whole)
    assert not family(ray_head.pid, WORKER, REPLICA, "ray::LearnerWorker", "ray::ColocatedWorker")


@pytest.mark.chaos
@pytest.mark.parametrize("victim", ["gcs_server", "raylet/raylet"])
def test_a_run_whose_ray_dies_ends_and_resumes_on_another(recipe, undisturbed, victim):
    """What a retried job does: a new cluster, and the run folder on storage that outlived the old one. The agents of a
    node notice its end within a minute or two. Without its raylet a run goes on for seconds, and this short one to its
    end: driver and actors talk to each other directly.
    """
    whole, other = undisturbed(), Run(recipe, "other", [], None)
    other.start()
    other.wait_for_a_moment(random.Random(0))
    below = psutil.Process(other.process.pid).children(recursive=True)
    family(other.process.pid, victim)[0].kill()
    killed = time.monotonic()
    try:
        other.process.wait(RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pytest.fail("the driver hangs")
    print(f"ended after {time.monotonic() - killed:.0f} s")
    _, alive = psutil.wait_procs(below, timeout=180)
    assert not [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    if other.process.returncode:
        other.start("--resume")
        other.finish()
    other.assert_equals(whole)
