"""The learner's ranks on real Ray: the update of one, whatever the shares; and no hang when one of them dies."""

import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import ray
from ray.actor import ActorHandle

from actors.learner.actor import LearnerWorker
from actors.learner.remote import RemoteLearner
from actors.learner.settings import GrpoSettings, LearnerSettings
from actors.lost import LearnerLate, LearnerLost
from services.base.errors import UserError
from services.base.logs import LogFile
from services.base.storage import Folder
from tests.helpers.learners import KERNEL, PLAN, learner_of, tasks_of
from tests.helpers.tiny import tiny_settings

pytestmark = pytest.mark.usefixtures("local_ray")

OBJECTIVE = GrpoSettings(kl=0.01, optimizer_steps=2)
SETTINGS = LearnerSettings(lr=1e-2, micro_batch=3, max_drift=10, update_timeout_s=60, ema={"every": 1})


class SmallBuckets(LearnerWorker):
    """Whose weights travel in several objects."""

    bucket_bytes = 2**10


@pytest.fixture
def learner(sd3_folder, tmp_path, request):
    """Starts the two ranks of a learner."""

    def start(shard: bool = False, **changes) -> RemoteLearner:
        settings = SETTINGS.model_copy(update={"ranks": 2, "shard": shard})

        def rank_of(rank: int) -> ActorHandle:
            policy, log = tiny_settings(sd3_folder, **changes), LogFile(tmp_path / "log", "test", "learner", {})
            arguments = (policy, KERNEL, OBJECTIVE, settings, PLAN.trained_steps, 0, log, rank)
            return ray.remote(SmallBuckets).options(num_cpus=0).remote(*arguments)

        started = RemoteLearner(rank_of, settings, 120)
        request.addfinalizer(started.close)
        started.join(120)
        return started

    return start


def experience(folder, count):
    """Tasks, and advantages of which the second task's are all 0."""
    batch = tasks_of(folder, count)
    return [decisions for decisions, _ in batch], [advantage_NK * (i != 1) for i, (_, advantage_NK) in enumerate(batch)]


def arrays_of(learner: RemoteLearner, version: int) -> dict[str, np.ndarray]:
    buckets = ray.get(list(learner.export(version).buckets), timeout=60)
    assert len(buckets) > 2
    return {name: array for bucket in buckets for name, array in bucket.items()}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("shared_by", "changes"),
    [
        pytest.param({}, {}, id="adapter"),
        pytest.param({"shard": True}, {"lora": None}, id="every weight, sharded"),
        pytest.param({"shard": True}, {}, id="sharded base", marks=SLOW),
        pytest.param({}, {"lora": None}, id="every weight", marks=SLOW),
    ],
)
def test_two_ranks_give_the_update_of_one_and_continue_from_a_checkpoint(
    sd3_folder, learner, tmp_path, shared_by, changes
):
    """Three tasks: uneven shares, a rank without a task in the second optimizer step, and a task of zeros.

    The one is a learner in this process. Ranks of a new process continue in the chaos tests and in `make test-all`.
    """
    tasks, advantages = experience(sd3_folder, 3)
    refs = [ray.put(task) for task in tasks]
    one, two = learner_of(sd3_folder, OBJECTIVE, SETTINGS, **changes), learner(**shared_by, **changes)
    for version in (1, 2):
        alone = one.update(list(zip(tasks, advantages, strict=True)), version - 1)
        shared = two.update(refs, advantages, version - 1)
        assert alone.grad_norm == pytest.approx(shared.grad_norm, rel=1e-5)
        assert shared.first_ratio_deviation == 0
        assert (alone.nfe, alone.clip_fraction) == (shared.nfe, pytest.approx(shared.clip_fraction))
        np.testing.assert_allclose(alone.drift_mean, shared.drift_mean, rtol=1e-4, atol=1e-7)
        expected, found = one.export(version).arrays, arrays_of(two, version)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)
        if version == 1:
            two.save(Folder.at(str(tmp_path)))
            assert two.saved(wait=True)
    if not shared_by:
        of_each = [worker.__ray_call__.remote(lambda rank: rank.policy.export(2).checksum) for worker in two.workers]
        assert len(set(ray.get(of_each, timeout=60))) == 1

    expected = two.evaluated().label
    two.restore(Folder.at(str(tmp_path)), 1)
    assert two.evaluated().label != expected
    two.update(refs, advantages, 1)
    assert two.evaluated().label == expected

    with pytest.raises(UserError, match="not finite"):
        two.update(refs, [advantage * np.nan for advantage in advantages], 2)


@SLOW
@pytest.mark.parametrize("shared_by", [{}, {"shard": True}], ids=["each whole", "sharded"])
def test_new_ranks_continue_from_a_checkpoint(sd3_folder, learner, tmp_path, shared_by):
    tasks, advantages = experience(sd3_folder, 3)
    refs, two = [ray.put(task) for task in tasks], learner(**shared_by, lora=None)
    two.update(refs, advantages, 0)
    two.save(Folder.at(str(tmp_path)))
    assert two.saved(wait=True)
    two.update(refs, advantages, 1)
    expected = two.evaluated().label
    two.restart()
    two.restore(Folder.at(str(tmp_path)), 1)
    two.update(refs, advantages, 1)
    assert two.evaluated().label == expected


def test_a_model_that_a_sharded_learner_cannot_load_is_one_sentence(sd3_folder, learner, tmp_path):
    shutil.copytree(sd3_folder, tmp_path / "model")
    file = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"^`.*diffusion_pytorch_model.safetensors` is torn"):
        learner(shard=True, lora=None, model=str(tmp_path / "model"))


@pytest.mark.chaos
@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_in_an_update_is_a_lost_learner_at_once(sd3_folder, learner, killed):
    tasks, advantages = experience(sd3_folder, 4)
    two = learner()
    pid = ray.get(two.workers[killed].__ray_call__.remote(lambda _: os.getpid()), timeout=60)
    two.workers[killed].__ray_call__.remote(lambda _: time.sleep(60))
    threading.Timer(1, os.kill, [pid, signal.SIGKILL]).start()
    started = time.monotonic()
    with pytest.raises(LearnerLost):
        two.update([ray.put(task) for task in tasks], advantages, 0)
    assert time.monotonic() - started < 30


@pytest.mark.chaos
def test_a_rank_that_hangs_in_an_update_is_a_late_learner(sd3_folder, learner):
    """The other rank waits in a collective; it is the driver that gives up, after `update_timeout_s`."""
    tasks, advantages = experience(sd3_folder, 4)
    two = learner()
    two.settings = two.settings.model_copy(update={"update_timeout_s": 5})
    pid = ray.get(two.workers[1].__ray_call__.remote(lambda _: os.getpid()), timeout=60)
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(LearnerLate, match="within 5 s"):
            two.update([ray.put(task) for task in tasks], advantages, 0)
        assert time.monotonic() - started < 15
    finally:
        os.kill(pid, signal.SIGKILL)
