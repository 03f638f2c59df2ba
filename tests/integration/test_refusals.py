"""What a role refuses as it starts reaches the user as the sentence that it is: exit code 2 and no traceback."""

import os
import signal
import subprocess
import sys

import pytest
import ray

from actors.learner.remote import RemoteLearner
from actors.learner.settings import LearnerSettings
from actors.rollout.fleet import Fleet
from services.base.errors import UserError, refusal
from services.base.ports import free_port
from tests.helpers.command_line import RUN_TIMEOUT_S, environment
from tests.helpers.paths import ROOT
from tests.helpers.recipes import ONE_PROCESS

SAYS = "policy.adapter: `x` has rank 2; set policy.lora.rank=2"


@ray.remote(num_cpus=0)
class Refuses:
    def __init__(self) -> None:
        raise UserError(SAYS)

    def ready(self) -> str:
        return ""

    def num_buckets(self) -> int:
        return 1


@ray.remote(num_cpus=0, max_restarts=0)
class Dies(Refuses.__ray_metadata__.modified_class):
    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_refuses_to_start_is_not_started_again(local_ray):
    started = []
    fleet = Fleet(lambda slot: started.append(slot) or Refuses.remote(), 2, 60, image_bytes=1, bytes_in_flight=1)
    with pytest.raises(UserError) as refused:
        fleet.wait_ready(60)
    assert str(refused.value) == SAYS
    assert started == [0, 1]
    fleet.close()


def test_a_worker_that_dies_three_times_as_it_starts_ends_the_start(local_ray):
    started = []
    fleet = Fleet(lambda slot: started.append(slot) or Dies.remote(), 1, 60, image_bytes=1, bytes_in_flight=1)
    with pytest.raises(UserError, match=r"rollout worker 0 died 3 times as it started: .*worker process has died"):
        fleet.wait_ready(60)
    assert started == [0, 0, 0]
    fleet.close()


def test_a_rank_that_refuses_to_start_is_no_lost_learner(local_ray):
    learner = RemoteLearner(lambda rank: Refuses.remote(), LearnerSettings(), 60)
    with pytest.raises(UserError) as refused:
        learner.join(60)
    assert str(refused.value) == SAYS


def test_other_errors_of_an_actor_are_no_refusals(local_ray):
    @ray.remote(num_cpus=0)
    class Broken:
        def __init__(self) -> None:
            try:
                raise UserError(SAYS)
            except UserError:
                raise ValueError("a bug") from None

        def ready(self) -> None: ...

    with pytest.raises(ray.exceptions.ActorDiedError) as died:
        ray.get(Broken.remote().ready.remote(), timeout=60)
    assert refusal(died.value) is None


REFUSES = f"""
from services.base.errors import UserError

class Refuses:
    def __init__(self):
        raise UserError("scorer mine: {SAYS}")

    def __call__(self, images_NHWC, prompts):
        return images_NHWC.mean(axis=(1, 2, 3))
"""


@pytest.mark.parametrize("command", ["train", pytest.param("serve", marks=pytest.mark.slow)])
def test_a_scorer_that_refuses_to_start_is_a_sentence(recipe, ray_head, tmp_path, command):
    """A pool with HTTP needs a Ray of its own: Serve on the other has none."""
    (tmp_path / "mine.py").write_text(REFUSES)
    env = environment(ray_head.address if command == "train" else None)
    overrides = ["scorers.0.scorer=mine:Refuses", "name=refused", f"serve.port={free_port()}", *ONE_PROCESS]
    done = subprocess.run(
        [sys.executable, "-m", "system", command, str(recipe), *overrides],
        **{"cwd": ROOT, "env": env, "capture_output": True, "text": True, "timeout": RUN_TIMEOUT_S},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"tempflow: scorer mine: {SAYS}"
    assert "Traceback" not in done.stderr
