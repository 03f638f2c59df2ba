"""The orchestration alone: the real loop, fleet, learner group and Serve pool, with roles that only sleep.

No role imports Torch, so that many processes fit on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import ray
from ray.actor import ActorHandle
from rich.console import Console

from actors.rollout.plans import make_plan
from services.scoring.settings import Replicas, ScorerSettings
from system.bench.sleeping import SleepingLearner, SleepingWorker
from system.launch.cluster import connect
from system.launch.roles import RayRoles
from system.loop.prompts import read_prompts
from system.loop.recorder import Recorder
from system.loop.trainer import Trainer
from system.recipe.model import RunConfig
from system.run.folder import RunFolder
from system.run.progress import Progress


@dataclass(frozen=True)
class Scenario:
    """How many roles there are and how long they sleep."""

    workers: int = 64
    replicas: int = 16
    ranks: int = 4
    task_s: float = 4.0
    """Of a worker, a task."""
    score_s: float = 0.8
    """Of a replica, a task's images."""
    update_s: float = 6.0
    """Of the learner, a training step."""
    tasks: int = 128
    """A training step."""
    slow: int = 0
    """Workers that take `slowness` times as long."""
    slowness: float = 5.0

    def ideal_s(self) -> float:
        """A training step that waits for nothing: the busiest role's work divided by its workers, each by its speed."""
        speed = self.workers - self.slow + self.slow / self.slowness
        generate_s, score_s = self.tasks * self.task_s / speed, self.tasks * self.score_s / self.replicas
        return max(generate_s, score_s, self.update_s)


class SleepingRoles(RayRoles):
    """The roles of a scenario: the real pool, fleet and group, over sleeping actors."""

    def __init__(self, config: RunConfig, logs: Path, scenario: Scenario) -> None:
        super().__init__(config, [], logs)
        self.scenario = scenario

    def _reserve(self) -> None: ...

    def _start_rank(self, rank: int) -> ActorHandle:
        return ray.remote(SleepingLearner).options(num_cpus=0).remote(self.scenario.update_s)

    def _start_worker(self, slot: int) -> ActorHandle:
        seconds = self.scenario.task_s * (self.scenario.slowness if slot < self.scenario.slow else 1)
        shape = (self.config.policy.height, self.config.policy.width, 3)
        return ray.remote(SleepingWorker).options(num_cpus=0).remote(seconds, shape)


def simulated(config: RunConfig, scenario: Scenario, steps: int, folder: str) -> RunConfig:
    """The recipe with the scenario's roles in place of its own."""
    images = make_plan(config.plan, config.policy.num_steps).leaves
    scorer = ScorerSettings(
        name="sleeping",
        scorer="system.bench.sleeping:SleepingScorer",
        options={"seconds": scenario.score_s, "images": images},
        replicas=Replicas(min=scenario.replicas, max=scenario.replicas),
        num_cpus=0,
        request_images=images,
        max_ongoing=2,
    )
    return config.model_copy(
        update={
            "name": "simulate",
            "output": folder,
            "steps": steps,
            "scorers": (scorer,),
            "data": config.data.model_copy(update={"heldout": None, "prompts_per_step": scenario.tasks}),
            "rollout": config.rollout.model_copy(update={"workers": scenario.workers, "max_workers": None}),
            "learner": config.learner.model_copy(update={"ranks": scenario.ranks}),
            "reward": config.reward.model_copy(update={"concurrency": 2 * scenario.replicas}),
            "checkpoint": config.checkpoint.model_copy(update={"every": steps, "folder": None}),
        }
    )


def simulate(config: RunConfig, scenario: Scenario, steps: int, console: Console) -> dict[str, float]:
    """Run training steps and compare `steps` of them with the ideal. Those that fill the pipeline at the start and
    those whose experience is there already at the end are left out.
    """
    prompts = read_prompts(config.data.train, config.data.prompt_column, config.data.category_column)
    ahead = config.learner.max_staleness
    filled = 1 + ahead
    with TemporaryDirectory(prefix="tempflow-simulate-") as folder:
        config = simulated(config, scenario, filled + steps + ahead, folder)
        with (
            RunFolder.open(config, resume=False) as run,
            SleepingRoles(config, run.logs, scenario) as roles,
            Progress(config.steps, console) as progress,
        ):
            Trainer(config, run, roles, prompts, None, Recorder(config, run, progress), lambda: None).fit()
        at_s = {line["step"]: line["time"] for line in run.read_metrics()}
    step_s = (at_s[filled + steps] - at_s[filled]) / steps
    return {
        "step_s": step_s,
        "ideal_s": scenario.ideal_s(),
        "of_ideal": scenario.ideal_s() / step_s,
        "driver_mb": psutil.Process().memory_info().rss / 1e6,
    }


def bench_simulated(config: RunConfig, steps: int, console: Console) -> dict[str, dict[str, float]]:
    """64 workers, 16 replicas and 4 ranks that sleep; then with a tenth of the workers five times slower."""
    slow = Scenario(slow=round(0.1 * Scenario.workers))
    connect()
    try:
        return {
            "even": simulate(config, Scenario(), steps, console),
            "stragglers": simulate(config, slow, steps, console),
        }
    finally:
        ray.shutdown()
