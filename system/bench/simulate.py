"""The orchestration alone: the real loop and fleet in one process, over roles that only take time. Ray is not started.

Workers, replicas and the learner are timers. What is measured is the driver: how close a step comes to one that waits
for nothing, and the CPU time that the driver spends on a task.
"""

import heapq
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import count
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from actors.learner.stats import UpdateStats
from actors.policy.weights import Exported, Label
from actors.reward.scores import Scores
from actors.rollout.fleet import Fleet
from actors.rollout.plans import make_plan
from actors.rollout.plans.plan import Plan
from actors.rollout.sampling import image_bytes
from actors.trajectory import Cost, Outcome, Task, Tree
from services.base.storage import Folder
from services.scoring.row import Row
from system.capacity.in_flight import task_image_bytes
from system.loop.prompts import prompts_of
from system.loop.recorder import Recorder
from system.loop.trainer import Trainer
from system.recipe.model import RunConfig
from system.run.checkpoint import RunState
from system.run.opening import open_run
from system.run.progress import Progress

START_TIMEOUT_S = 60
WORKERS = (64, 256, 1024, 4096)
TASKS_PER_WORKER = 2
"""Tasks of a training step for each worker."""


@dataclass(frozen=True)
class Scenario:
    """How many roles there are and how long they take."""

    workers: int = 64
    replicas: int = 16
    task_s: float = 4.0
    """Seconds of a worker for a task."""
    score_s: float = 0.8
    """Seconds of a replica for the images of a task."""
    update_s: float = 6.0
    """Seconds of the learner for a training step."""
    tasks: int = 128
    """Tasks of a training step."""
    slow: int = 0
    """How many workers take `slowness` times as long."""
    slowness: float = 5.0

    def ideal_s(self) -> float:
        """A training step that waits for nothing: the busiest role's work divided by its workers, each by its speed."""
        speed = self.workers - self.slow + self.slow / self.slowness
        generate_s, score_s = self.tasks * self.task_s / speed, self.tasks * self.score_s / self.replicas
        return max(generate_s, score_s, self.update_s)


def scenario_of(workers: int) -> Scenario:
    """Roles in proportion to 64 workers, so that the driver has the more to do the more of them there are."""
    return Scenario(
        workers=workers, replicas=workers // 4, tasks=TASKS_PER_WORKER * workers, task_s=4.0, score_s=0.8, update_s=1.0
    )


class Timer:
    """Resolves futures after a while, in one thread. Use as a context manager."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Future[Any], Any]] = []
        self._order = count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="timer", daemon=True)

    def __enter__(self) -> "Timer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def at(self, due: float, result: Any) -> Future[Any]:
        """A future that has the result from `due` on, by the monotonic clock."""
        future: Future[Any] = Future()
        with self._changed:
            heapq.heappush(self._due, (due, next(self._order), future, result))
            if self._due[0][2] is future:
                self._changed.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                ready = []
                while self._due and self._due[0][0] <= now:
                    ready.append(heapq.heappop(self._due))
                if not ready:
                    self._changed.wait(self._due[0][0] - now if self._due else None)
            for _, _, future, result in ready:
                future.set_result(result)


class Reference:
    """Stands for a reference in the object store."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def future(self) -> Future[Any]:
        return self._future


class SimulatedWorker:
    """The handle of a rollout worker that answers after a while with a tree of the right size."""

    def __init__(self, timer: Timer, seconds: float) -> None:
        self._timer, self._seconds = timer, seconds
        self.ready, self.load = (SimpleNamespace(remote=call) for call in (self._ready, self._load))
        self.generate = SimpleNamespace(remote=self._generate)

    def _answer(self, result: Any, seconds: float = 0.0) -> Reference:
        return Reference(self._timer.at(time.monotonic() + seconds, result))

    def _ready(self) -> Reference:
        return self._answer("node")

    def _load(self, label: Label, *buckets: Any) -> Reference:
        return self._answer((label.version, label.checksum))

    def _generate(self, task: Task, plan: Plan) -> list[Any]:
        decisions, width = plan.decisions, plan.siblings
        step_N = np.resize(plan.trained_steps, decisions)
        leaf_NKL = np.arange(decisions * width).reshape(decisions, width, 1)
        tree = Tree(step_N, np.zeros(decisions, np.int64), leaf_NKL, plan.leaves)
        cost = Cost(nfe=plan.nfe, decodes=plan.leaves, seconds=self._seconds)
        return [None, None, self._answer(Outcome(tree, np.ones(plan.leaves, bool), cost), self._seconds)]


class SimulatedRewards:
    """Replicas that score one job after the other (`system.loop.roles.Rewards`)."""

    def __init__(self, timer: Timer, scenario: Scenario) -> None:
        self._timer, self._seconds = timer, scenario.score_s
        self._free_at = [0.0] * scenario.replicas
        self._lock = threading.Lock()

    def score(
        self,
        images: Any,
        prompts: Sequence[str],
        names: Sequence[str],
        finite_M: np.ndarray,
        rows: Sequence[Row] = (),
        group: int | None = None,
    ) -> Future[Scores]:
        with self._lock:
            done_at = max(heapq.heappop(self._free_at), time.monotonic()) + self._seconds
            heapq.heappush(self._free_at, done_at)
        score_M = np.linspace(0, 1, len(prompts))
        scores = Scores({name: score_M.copy() for name in names}, busy_s=dict.fromkeys(names, self._seconds))
        return self._timer.at(done_at, scores)


class SimulatedLearners:
    """A learner that sleeps (`system.loop.roles.Learners`)."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restarts = 0

    def describe(self) -> dict[str, list[float]]:
        return {}

    def update(self, experience: Sequence[Any], advantages: Sequence[np.ndarray], behaviour: int) -> UpdateStats:
        time.sleep(self._seconds)
        return UpdateStats(0, 0, 0, 0, 1, 0, 0, 0, [0.0], [0.0], 0, self._seconds)

    def export(self, version: int) -> Exported:
        return Exported((), Label(version, str(version), 0))

    def evaluated(self) -> Exported:
        return self.export(0)

    def save(self, folder: Folder) -> None: ...

    def saved(self, wait: bool) -> dict[str, str]:
        return {}

    def restore(self, folder: Folder, version: int) -> None: ...

    def save_model(self, folder: str) -> None: ...

    def restart(self) -> None:
        self.restarts += 1


class SimulatedRoles:
    """The roles of a scenario: the real fleet over simulated workers, and simulated rewards and learner."""

    def __init__(self, config: RunConfig, scenario: Scenario, timer: Timer) -> None:
        def start(slot: int) -> Any:
            return SimulatedWorker(timer, scenario.task_s * (scenario.slowness if slot < scenario.slow else 1))

        task_bytes = task_image_bytes(config, make_plan(config.plan, config.policy.num_steps))
        self.rollouts = Fleet(
            start,
            scenario.workers,
            config.rollout.task_timeout_s,
            image_bytes=image_bytes(config.policy),
            bytes_in_flight=2 * scenario.workers * task_bytes,
            end_worker=lambda worker: None,
        )
        self.rewards = SimulatedRewards(timer, scenario)
        self.learners = SimulatedLearners(scenario.update_s)


def simulated(config: RunConfig, scenario: Scenario, steps: int, folder: str) -> RunConfig:
    """The recipe with as many steps and tasks as the scenario has, without evaluation."""
    return config.model_copy(
        update={
            "name": "simulate",
            "output": folder,
            "steps": steps,
            "data": config.data.model_copy(update={"heldout": None, "prompts_per_step": scenario.tasks}),
            "log": config.log.model_copy(update={"train_images_every": 0}),  # there are no pixels
            "checkpoint": config.checkpoint.model_copy(update={"every": steps, "folder": None}),
        }
    )


def simulate(config: RunConfig, scenario: Scenario, steps: int, console: Console) -> dict[str, float]:
    """Run training steps and compare `steps` of them with the ideal.

    Steps that fill the pipeline at the start, and those whose experience exists already at the end, are left out.

    Returns:
        Seconds of a step, of an ideal step, their ratio, and microseconds of the driver's CPU for each task.
    """
    prompts = prompts_of(config.data, config.data.train)
    enough = [prompts[i % len(prompts)] for i in range(max(len(prompts), scenario.tasks))]
    prompts = replace(prompts, texts=enough, categories=None)
    ahead = config.learner.max_staleness
    filled = 1 + ahead
    cpu_s: dict[int, float] = {}

    class Watched(Recorder):
        """Notes the CPU time of the process after each training step."""

        def training_step(self, state: RunState, *args: Any, **kwargs: Any) -> None:
            super().training_step(state, *args, **kwargs)
            cpu_s[state.step] = time.process_time()

    with TemporaryDirectory(prefix="tempflow-simulate-") as folder, Timer() as timer:
        config = simulated(config, scenario, filled + steps + ahead, folder)
        with open_run(config, resume=False) as run, Progress(config.steps, console) as progress:
            roles = SimulatedRoles(config, scenario, timer)
            try:
                roles.rollouts.wait_ready(START_TIMEOUT_S)
                Trainer(config, run, roles, prompts, [], Watched(config, run, progress), lambda: None).fit()
            finally:
                roles.rollouts.close()
        at_s = {line["step"]: line["time"] for line in run.read_metrics()}
    last = filled + steps
    step_s = (at_s[last] - at_s[filled]) / steps
    return {
        "step_s": step_s,
        "ideal_s": scenario.ideal_s(),
        "of_ideal": scenario.ideal_s() / step_s,
        "driver_us_per_task": 1e6 * (cpu_s[last] - cpu_s[filled]) / (steps * scenario.tasks),
        "driver_mb": psutil.Process().memory_info().rss / 1e6,
    }


def bench_simulated(config: RunConfig, steps: int, console: Console, most: int) -> dict[str, dict[str, float]]:
    """64 workers, the same with a tenth of them five times slower, and numbers of workers up to `most`."""
    slow = replace(Scenario(), slow=round(0.1 * Scenario.workers))
    scenarios = {"even": Scenario(), "stragglers": slow}
    scenarios |= {f"{workers} workers": scenario_of(workers) for workers in WORKERS if workers <= most}
    return {name: simulate(config, scenario, steps, console) for name, scenario in scenarios.items()}
