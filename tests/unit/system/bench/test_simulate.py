"""The orchestration over simulated roles: how close it comes to the ideal, and what the driver keeps."""

import gc
import sys
import time

import psutil
import pytest
from rich.console import Console

from system.bench.simulate import Scenario, SimulatedRoles, Timer, simulate, simulated
from system.loop.prompts import prompts_of
from system.loop.recorder import Recorder
from system.loop.trainer import Trainer
from system.recipe.load import load_config
from system.run.opening import open_run
from system.run.progress import Progress

SMALL = Scenario(workers=3, replicas=1, task_s=0.02, score_s=0.01, update_s=0.05, tasks=6)


def test_the_ideal_is_the_busiest_role_at_its_speed():
    assert Scenario(workers=64, tasks=128, task_s=4, update_s=1).ideal_s() == pytest.approx(8)
    assert Scenario(workers=64, tasks=128, task_s=4, update_s=9).ideal_s() == 9
    assert Scenario(replicas=16, tasks=128, score_s=2).ideal_s() == 16
    assert Scenario(workers=10, slow=5, slowness=5, tasks=60, task_s=1, update_s=1, score_s=0).ideal_s() == 10


def test_a_timer_resolves_futures_in_the_order_of_their_time():
    now, order = time.monotonic(), []
    with Timer() as timer:
        futures = [timer.at(now + after, after) for after in (0.06, 0.02, 0.04)]
        for future in futures:
            future.add_done_callback(lambda done: order.append(done.result()))
        futures[0].result(10)
    assert order == [0.02, 0.04, 0.06]
    assert time.monotonic() - now >= 0.06


@pytest.mark.parametrize("staleness", [0, 2])
def test_the_real_loop_runs_on_simulated_roles(staleness):
    config = load_config("shapes", [f"learner.max_staleness={staleness}"])
    figures = simulate(config, SMALL, 3, Console(quiet=True))
    assert figures["ideal_s"] == 0.06
    assert 0 < figures["of_ideal"] < 1
    assert figures["driver_us_per_task"] > 0


@pytest.mark.slow
def test_the_driver_keeps_nothing_of_a_step(tmp_path):
    """1,500 steps of 6 tasks: Python's memory blocks over 1,200 of them, fewer than ten a step, where a step's metrics
    would be sixty; resident memory over the last 500, since it takes some 800 to settle.
    """
    config = simulated(load_config("shapes", ["learner.max_staleness=1"]), SMALL, 1500, str(tmp_path))
    prompts = prompts_of(config.data, config.data.train)
    seen, blocks = [], []

    class Watching(Recorder):
        def training_step(self, *of_step) -> None:
            super().training_step(*of_step)
            seen.append(psutil.Process().memory_info().rss)
            if len(seen) in (300, 1500):
                gc.collect()
                blocks.append(sys.getallocatedblocks())

    with (
        open_run(config, resume=False) as run,
        Progress(config.steps, Console(quiet=True)) as progress,
        Timer() as timer,
    ):
        roles = SimulatedRoles(config, SMALL, timer)
        roles.rollouts.wait_ready(60)
        Trainer(config, run, roles, prompts, None, Watching(config, run, progress), lambda: None).fit()
        roles.rollouts.close()
    print(f"resident each 50 steps: {[size // 10**6 for size in seen[49::50]]} MB; blocks: {blocks}")
    assert len(seen) == 1500
    assert blocks[1] - blocks[0] < 10 * 1200
    assert max(seen[-50:]) - max(seen[950:1000]) < 10e6
