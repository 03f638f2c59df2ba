"""The orchestration over roles that sleep: what is ahead of what, and what the driver keeps."""

import gc
import sys

import psutil
import pytest
import ray
from rich.console import Console

from system.bench.simulate import Scenario, SleepingRoles, simulate, simulated
from system.config import load_config
from system.progress import Progress
from system.prompts import read_prompts
from system.run_folder import RunFolder
from system.trainer import Trainer

pytestmark = pytest.mark.usefixtures("local_ray")
SMALL = Scenario(workers=3, replicas=1, ranks=2, task_s=0.02, score_s=0.01, update_s=0.05, tasks=6)


def test_the_ideal_is_the_busiest_role_at_its_speed():
    assert Scenario(workers=64, tasks=128, task_s=4, update_s=1).ideal_s() == pytest.approx(8)
    assert Scenario(workers=64, tasks=128, task_s=4, update_s=9).ideal_s() == 9
    assert Scenario(replicas=16, tasks=128, score_s=2).ideal_s() == 16
    assert Scenario(workers=10, slow=5, slowness=5, tasks=60, task_s=1, update_s=1, score_s=0).ideal_s() == 10


@pytest.mark.parametrize("staleness", [0, 2])
def test_the_real_loop_runs_on_sleeping_roles(staleness):
    config = load_config("shapes", [f"learner.max_staleness={staleness}"])
    figures = simulate(config, SMALL, 3, Console(quiet=True))
    assert figures["ideal_s"] == 0.06
    assert 0 < figures["of_ideal"] < 1


@pytest.mark.slow
def test_the_driver_keeps_nothing_of_a_step(tmp_path):
    """1,500 steps of 6 tasks: Python's memory blocks over 1,200 of them, fewer than ten a step, where a step's metrics
    would be sixty; resident memory over the last 500, since it takes some 800 to settle; Ray's objects at the end.
    """
    config = simulated(load_config("shapes", ["learner.max_staleness=1"]), SMALL, 1500, str(tmp_path))
    prompts = read_prompts(config.data.train, config.data.prompt_column, config.data.category_column)
    seen, blocks = [], []

    class Watching(Trainer):
        def _step(self, collector) -> None:
            super()._step(collector)
            seen.append(psutil.Process().memory_info().rss)
            if len(seen) in (300, 1500):
                gc.collect()
                blocks.append(sys.getallocatedblocks())

    with (
        RunFolder.open(config, resume=False) as run,
        SleepingRoles(config, run.logs, SMALL) as roles,
        Progress(config.steps, Console(quiet=True)) as progress,
    ):
        Watching(config, run, roles, prompts, None, progress, lambda: None).fit()
    print(f"resident each 50 steps: {[size // 10**6 for size in seen[49::50]]} MB; blocks: {blocks}")
    assert len(seen) == 1500
    assert blocks[1] - blocks[0] < 10 * 1200
    assert max(seen[-50:]) - max(seen[950:1000]) < 10e6
    used = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
    assert used < 50e6
