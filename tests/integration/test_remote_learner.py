"""The learner's ranks on real Ray: the update of one, whatever the shares; and no hang when one of them dies."""

import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import ray

from actors.learner.actor import LearnerWorker
from actors.learner.remote import RemoteLearner
from actors.learner.settings import GrpoSettings, LearnerSettings
from actors.lost import LearnerLost
from actors.policy.settings import FlowSDESettings
from services.base.errors import UserError
from services.base.logs import LogFile
from services.base.storage import Folder
from tests.helpers.learners import PLAN, tasks_of
from tests.helpers.tiny import tiny_settings

pytestmark = pytest.mark.usefixtures("local_ray")

OBJECTIVE = GrpoSettings(kl=0.01, optimizer_steps=2)


class SmallBuckets(LearnerWorker):
    """Whose weights travel in several objects."""

    bucket_bytes = 2**10


@pytest.fixture(scope="module")
def learner(sd3_folder, local_ray, tmp_path_factory):
    """Starts learners and closes them; asked again for the same one, it restarts it."""
    started = {}
    logs = tmp_path_factory.mktemp("logs")

    def start(ranks: int, shard: bool = False, **changes) -> RemoteLearner:
        key = str((ranks, shard, changes))
        if key in started:
            started[key].restart()
            return started[key]
        settings = LearnerSettings(
            ranks=ranks, shard=shard, lr=1e-2, micro_batch=3, max_drift=10, update_timeout_s=60, ema={"every": 1}
        )
        policy, kernel, steps = tiny_settings(sd3_folder, **changes), FlowSDESettings(), PLAN.trained_steps
        started[key] = RemoteLearner(
            lambda rank: (
                ray.remote(SmallBuckets)
                .options(num_cpus=0)
                .remote(
                    policy,
                    kernel,
                    OBJECTIVE,
                    settings,
                    steps,
                    0,
                    LogFile(logs / f"{rank}.log", "test", "learner", {"rank": rank}),
                    rank,
                )
            ),
            settings,
            120,
        )
        started[key].join(120)
        return started[key]

    yield start
    for each in started.values():
        each.close()


def experience(folder, count):
    """Tasks in the object store, and advantages of which the second task's are all 0."""
    batch = tasks_of(folder, count)
    advantages = [advantage_NK * (i != 1) for i, (_, advantage_NK) in enumerate(batch)]
    return [ray.put(decisions) for decisions, _ in batch], advantages


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
    """Three tasks: uneven shares, a rank without a task in the second optimizer step, and a task of zeros."""
    tasks, advantages = experience(sd3_folder, 3)
    one, two = learner(1, **changes), learner(2, **shared_by, **changes)
    for version in (1, 2):
        alone, shared = (learner.update(tasks, advantages, version - 1) for learner in (one, two))
        assert alone.grad_norm == pytest.approx(shared.grad_norm, rel=1e-5)
        assert shared.first_ratio_deviation == 0
        assert (alone.nfe, alone.clip_fraction) == (shared.nfe, pytest.approx(shared.clip_fraction))
        np.testing.assert_allclose(alone.drift_mean, shared.drift_mean, rtol=1e-4, atol=1e-7)
        expected, found = arrays_of(one, version), arrays_of(two, version)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6)
        if version == 1:
            two.save(Folder.at(str(tmp_path)))
            assert two.saved(wait=True)
    if not shared_by:
        of_each = [worker.__ray_call__.remote(lambda rank: rank.policy.export(2).checksum) for worker in two.workers]
        assert len(set(ray.get(of_each, timeout=60))) == 1

    expected = two.evaluated().label
    two = learner(2, **shared_by, **changes)
    two.restore(Folder.at(str(tmp_path)), 1)
    two.update(tasks, advantages, 1)
    assert two.evaluated().label == expected

    with pytest.raises(UserError, match="not finite"):
        two.update(tasks, [advantage * np.nan for advantage in advantages], 2)


def test_a_model_that_a_sharded_learner_cannot_load_is_one_sentence(sd3_folder, learner, tmp_path):
    shutil.copytree(sd3_folder, tmp_path / "model")
    file = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"^`.*diffusion_pytorch_model.safetensors` is torn"):
        learner(2, shard=True, lora=None, model=str(tmp_path / "model"))


@pytest.mark.chaos
@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies_in_an_update_is_a_lost_learner_at_once(sd3_folder, learner, killed):
    tasks, advantages = experience(sd3_folder, 4)
    two = learner(2)
    pid = ray.get(two.workers[killed].__ray_call__.remote(lambda _: os.getpid()), timeout=60)
    two.workers[killed].__ray_call__.remote(lambda _: time.sleep(60))
    threading.Timer(1, os.kill, [pid, signal.SIGKILL]).start()
    started = time.monotonic()
    with pytest.raises(LearnerLost):
        two.update(tasks, advantages, 0)
    assert time.monotonic() - started < 30
