"""The orchestration over roles that sleep: what is ahead of what, and what the driver keeps."""

import gc
import shutil
import sys

import psutil
import pytest
import ray
from rich.console import Console

from actors.lost import LearnerLost
from services.base.errors import UserError
from system.bench.simulate import Scenario, SleepingRoles, simulate, simulated
from system.loop.prompts import read_prompts
from system.loop.recorder import Recorder
from system.loop.trainer import Trainer
from system.recipe.load import load_config
from system.recipe.model import RunConfig
from system.run.folder import RunFolder
from system.run.progress import Progress

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


def fit(settings: RunConfig, trainer: type[Trainer]) -> RunFolder:
    """Run the real loop over sleeping roles; returns the run's folder."""
    prompts = read_prompts(settings.data.train, settings.data.prompt_column, settings.data.category_column)
    with (
        RunFolder.open(settings, resume=False) as run,
        SleepingRoles(settings, run.logs, SMALL) as roles,
        Progress(settings.steps, Console(quiet=True)) as progress,
    ):
        trainer(settings, run, roles, prompts, None, Recorder(settings, run, progress), lambda: None).fit()
    return run


class LosesItsLearner(Trainer):
    """Loses it once, after two steps, before there is a checkpoint with weights."""

    lost = False

    def _step(self, collector) -> None:
        if self.state.step == 2 and not self.lost:
            self.lost = True
            self.meanwhile()
            raise LearnerLost("killed")
        super()._step(collector)

    def meanwhile(self) -> None: ...


def test_a_learner_that_is_lost_before_a_checkpoint_with_weights_begins_at_that_of_step_0(tmp_path):
    settings = simulated(load_config("shapes"), SMALL, 4, str(tmp_path))
    run = fit(settings, LosesItsLearner)
    assert [line["step"] for line in run.read_metrics()] == [0, 1, 2, 3, 4]
    assert [line.get("learner_restarts") for line in run.read_metrics()] == [None, 1, 1, 1, 1]
    first = run.path / "checkpoints" / "step_000000"
    assert sorted(file.name for file in first.iterdir()) == ["manifest.json", "recipe.yaml", "state.json"]


def test_a_learner_that_is_lost_with_all_checkpoints_ends_the_run_and_no_record_is_touched(tmp_path):
    settings = simulated(load_config("shapes"), SMALL, 4, str(tmp_path))
    metrics, before = tmp_path / settings.name / "metrics.jsonl", []

    class LosesTheCheckpointsToo(LosesItsLearner):
        def meanwhile(self) -> None:
            shutil.rmtree(self.run.path / "checkpoints")
            before.append(metrics.read_bytes())

    with pytest.raises(UserError, match="has recorded step 2, but there is no checkpoint of it in"):
        fit(settings, LosesTheCheckpointsToo)
    assert metrics.read_bytes() == before[0]
    assert len(list((tmp_path / settings.name / "experience").iterdir())) == 2


def test_a_driver_whose_run_another_one_has_taken_over_ends(tmp_path):
    settings = simulated(load_config("shapes"), SMALL, 4, str(tmp_path))

    class TakenOver(Trainer):
        def _step(self, collector) -> None:
            if self.state.step == 2:
                self.run.checkpoints(self.config.checkpoint).claim()
            super()._step(collector)

    with pytest.raises(UserError, match="another driver has taken over the checkpoints"):
        fit(settings, TakenOver)
    assert [path.name for path in (tmp_path / settings.name / "checkpoints").glob("step_*")] == ["step_000000"]


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
        Watching(config, run, roles, prompts, None, Recorder(config, run, progress), lambda: None).fit()
    print(f"resident each 50 steps: {[size // 10**6 for size in seen[49::50]]} MB; blocks: {blocks}")
    assert len(seen) == 1500
    assert blocks[1] - blocks[0] < 10 * 1200
    assert max(seen[-50:]) - max(seen[950:1000]) < 10e6
    used = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
    assert used < 50e6
