"""The training loop: generate, score, compare, update, broadcast, evaluate, write down."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.learner.advantage import Advantages, advantages
from actors.learner.stats import UpdateStats
from actors.reward.pool import Scores
from actors.rollout.fleet import Generated
from actors.rollout.in_flight import InFlight
from actors.rollout.plans import Plan, make_plan
from actors.trajectory import Cost, Task
from services.errors import UserError
from system.checkpoint import RunState, latest_checkpoint, save_checkpoint
from system.config import RunConfig
from system.evaluate import Evaluation, evaluate
from system.experience import experience_table
from system.launch import Roles
from system.progress import Progress
from system.prompts import Prompts, rows_of_step
from system.run_folder import RunFolder
from system.stop import Stopped

log = logging.getLogger(__name__)

CONTROL_TIMEOUT_S = 600
"""Small requests to the learner: export, save, restore."""


@dataclass
class Experience:
    """One step's tasks in index order, generated and scored."""

    generated: list[Generated]
    scores: list[Scores]
    rewards: list[np.ndarray]
    """(M,) combined reward of each task's leaves; NaN is a hole."""
    advantages: Advantages
    peak_bytes: int

    @property
    def cost(self) -> Cost:
        return sum((task.cost for task in self.generated), Cost())

    @property
    def num_scores(self) -> int:
        return sum(len(values) for score in self.scores for values in score.by_scorer.values())


@dataclass
class Clock:
    """Seconds by stage of one step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


class Trainer:
    """Runs the steps of a recipe on live roles.

    Args:
        check_stop: raises Stopped when the run is to end.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunFolder,
        roles: Roles,
        train: Prompts,
        heldout: Prompts | None,
        progress: Progress,
        check_stop: Callable[[], None],
    ) -> None:
        self.config, self.run, self.roles = config, run, roles
        self.train, self.heldout = train, heldout
        self.progress, self.check_stop = progress, check_stop
        self.plan: Plan = make_plan(config.plan, config.policy.num_steps)
        self.state = RunState()
        self.saved_step = -1
        self.kept_exports: list[ray.ObjectRef] = []
        self.schedule: dict[str, list[float]] = {}
        self.image_bytes = self.plan.leaves * config.policy.height * config.policy.width * 3

    def fit(self) -> None:
        """All steps of the run, from its latest checkpoint on; a stop leaves a checkpoint of the last whole step."""
        self.schedule = ray.get(self.roles.learner.describe.remote(), timeout=self.config.ray.start_timeout_s)
        try:
            self._begin()
            while self.state.step < self.config.steps:
                self._step()
        except Stopped:
            self._checkpoint()
            raise
        self._checkpoint()

    def _begin(self) -> None:
        """Restore the latest checkpoint, or evaluate the model as it comes."""
        found = latest_checkpoint(self.run.checkpoints)
        if found is not None:
            folder, self.state = found
            self._ask(self.roles.learner.restore, str(folder), self.state.step)
            self.saved_step = self.state.step
        self.run.forget_after(self.state.step if found else -1)
        self._broadcast()
        if found is None:
            clock = Clock()
            with clock("eval"):
                line = self._evaluate()
            self._record({"step": 0, **line, **_prefixed("seconds", clock.seconds)})
        elif self._eval_due() and not self.run.has_eval(self.state.step):
            self.run.amend_metrics(self._evaluate())

    def _step(self) -> None:
        """One training step. Until the update nothing has changed, so a stop loses only this step's images."""
        started, clock = time.perf_counter(), Clock()
        self.progress.stage(self.state.step + 1, "generate", 0, self.config.data.prompts_per_step)
        with clock("generate"):
            experience = self._collect(self._tasks())
        with clock("update"):
            stats = self._update(experience)
        self.state.step += 1
        with clock("broadcast"):
            weights_bytes = self._broadcast()
        self._spend(experience.cost + Cost(nfe=stats.nfe), experience.num_scores)
        self.run.write_experience(self.state.step, self._table(experience))
        scores: dict[str, Any] = {}
        try:
            if self._eval_due():
                with clock("eval"):
                    scores = self._evaluate()
        finally:
            clock.seconds["score"] = self._busy(experience)
            clock.seconds["step"] = time.perf_counter() - started
            self.state.elapsed_s += clock.seconds["step"]
            line = self._describe(experience, stats, clock, weights_bytes)
            self._record({"step": self.state.step, **scores, **line})
        if self.state.step % self.config.checkpoint.every == 0:
            self._checkpoint()

    def _tasks(self) -> list[Task]:
        step, config = self.state.step, self.config
        rows = rows_of_step(len(self.train), config.data.prompts_per_step, step, config.seed)
        return [Task(i, self.train[row], (config.seed, step, row), step) for i, row in enumerate(rows)]

    def _collect(self, tasks: Sequence[Task]) -> Experience:
        """Generate and score all tasks: one task is scored while the next is generated."""
        config = self.config
        names = list(config.weights)
        room = InFlight(config.rollout.max_bytes_in_flight)
        generated: dict[int, Generated] = {}
        scored: dict[int, Future[Scores]] = {}

        def score(task: Generated) -> Scores:
            try:
                return self.roles.pool.score(task.images, [task.task.prompt] * task.tree.num_leaves, names)
            finally:
                room.release(self.image_bytes)

        with ThreadPoolExecutor(config.reward.concurrency, "score") as threads:
            for task in self.roles.fleet.generate(tasks, self.plan, room, self.image_bytes):
                scored[task.task.index] = threads.submit(score, task)
                generated[task.task.index] = task
                self.progress.stage(self.state.step + 1, "generate", len(generated), len(tasks))
            scores = [scored[i].result() for i in range(len(tasks))]
        self.check_stop()
        in_order = [generated[i] for i in range(len(tasks))]
        rewards = [score.combined(config.weights) for score in scores]
        self._refuse_holes(rewards, scores)
        result = advantages(config.advantage, [task.tree for task in in_order], rewards)
        return Experience(in_order, scores, rewards, result, room.peak)

    def _refuse_holes(self, rewards: Sequence[np.ndarray], scores: Sequence[Scores]) -> None:
        holes = np.isnan(np.concatenate(rewards))
        if holes.mean() > self.config.reward.max_hole_share:
            reasons = {name: reason for score in scores for name, reason in score.errors.items()}
            why = "; ".join(f"scorer `{name}`: {reason}" for name, reason in reasons.items())
            raise UserError(
                f"{holes.sum()} of {len(holes)} images of step {self.state.step + 1} have no reward "
                f"({why or 'the scorers returned NaN'}); mend the scorer, or raise reward.max_hole_share"
            )

    def _update(self, experience: Experience) -> UpdateStats:
        self.progress.stage(self.state.step + 1, "update")
        answer = self.roles.learner.update.remote(
            experience.advantages.by_task, *[task.decisions for task in experience.generated]
        )
        return ray.get(answer, timeout=self.config.learner.update_timeout_s)

    def _broadcast(self) -> int:
        """Send the learner's weights to every worker and wait for all confirmations; returns their bytes."""
        return self._send(self.roles.learner.export.remote(self.state.step))

    def _send(self, weights: ray.ObjectRef) -> int:
        exported = ray.get(weights, timeout=CONTROL_TIMEOUT_S)
        self.roles.fleet.broadcast(weights, exported.version, exported.checksum)
        self.kept_exports = [*self.kept_exports[-1:], weights]
        return exported.num_bytes

    def _eval_due(self) -> bool:
        return self.state.step % self.config.eval.every == 0 or self.state.step == self.config.steps

    def _evaluate(self) -> dict[str, Any]:
        """Held-out scores of the evaluated weights (the EMA where there is one)."""
        if self.heldout is None:
            return {}
        if self.config.learner.ema:
            self._send(self.roles.learner.evaluated.remote())
        scorers = [scorer.name for scorer in self.config.scorers]
        result: Evaluation = evaluate(
            self.roles.fleet,
            self.roles.pool,
            self.heldout,
            scorers,
            self.config.eval,
            self.config.seed,
            progress=lambda done, of: self.progress.stage(self.state.step, "evaluate", done, of),
        )
        if self.config.learner.ema:
            self._broadcast()
        self.run.write_eval(self.state.step, result.table)
        self.run.write_samples(self.state.step, result.grid_NHWC)
        return result.summary(scorers)

    def _checkpoint(self) -> None:
        """Write the state of the last whole step, unless it is written already."""
        if self.saved_step == self.state.step:
            return
        learner = self.roles.learner
        save_checkpoint(
            self.run.checkpoints,
            self.state,
            lambda folder: self._ask(learner.save, folder),
            self.config.checkpoint.keep,
        )
        self._ask(learner.save_lora, str(self.run.lora))
        self.saved_step = self.state.step

    def _ask(self, method: Any, *arguments: Any) -> Any:
        return ray.get(method.remote(*arguments), timeout=CONTROL_TIMEOUT_S)

    def _spend(self, cost: Cost, scores: int) -> None:
        self.state.nfe += cost.nfe
        self.state.decodes += cost.decodes
        self.state.scores += scores

    def _record(self, line: dict[str, Any]) -> None:
        line = {"time": time.time(), "elapsed_s": self.state.elapsed_s, **line}
        line |= {"nfe": self.state.nfe, "decodes": self.state.decodes, "scores": self.state.scores}
        self.run.append_metrics(line)
        self.progress.finished(line)

    def _busy(self, experience: Experience) -> float:
        return sum(seconds for score in experience.scores for seconds in score.busy_s.values())

    def _table(self, experience: Experience) -> pa.Table:
        return experience_table(
            [task.task for task in experience.generated],
            [task.tree for task in experience.generated],
            experience.scores,
            experience.rewards,
            experience.advantages.by_task,
        )

    def _describe(self, experience: Experience, stats: UpdateStats, clock: Clock, weights_bytes: int) -> dict[str, Any]:
        """The metrics of one step; docs/metrics.md explains each key."""
        config, cost = self.config, experience.cost
        line: dict[str, Any] = {"version": self.state.step}
        for name in config.weights:
            values = np.concatenate([score.by_scorer[name] for score in experience.scores])
            line[f"reward/{name}/mean"], line[f"reward/{name}/std"] = (
                float(np.nanmean(values)),
                float(np.nanstd(values)),
            )
        line["reward/mean"] = float(np.nanmean(np.concatenate(experience.rewards)))
        line |= {
            "advantage/flat_groups": experience.advantages.flat_groups,
            "holes": experience.advantages.holes,
            "loss": stats.loss,
            "kl": stats.kl,
            "grad_norm": stats.grad_norm,
            "ratio/mean": stats.ratio_mean,
            "ratio/max_deviation": stats.ratio_max_deviation,
            "ratio/first_deviation": stats.first_ratio_deviation,
            "ratio/clip_fraction": stats.clip_fraction,
            "drift/mean": float(np.nanmax(stats.drift_mean)),
            "drift/max": float(np.nanmax(stats.drift_max)),
            "drift/by_step": stats.drift_mean,
            "branch/std": self._branch_std(experience),
            "branch/noise_level": self.schedule["noise_level"],
            "branch/weight": self.schedule["noise_weight"],
            "nfe/generate": cost.nfe,
            "nfe/padding": cost.padding,
            "nfe/learn": stats.nfe,
            "bytes/images_peak": experience.peak_bytes,
            "bytes/weights": weights_bytes,
            "retries/scores": sum(score.retries for score in experience.scores),
            "workers_replaced": self.roles.fleet.replaced,
        }
        replicas = sum(scorer.replicas for scorer in config.scorers if scorer.weight)
        busy = {
            "rollout": cost.seconds / config.rollout.workers,
            "reward": clock.seconds["score"] / replicas,
            "learner": stats.seconds,
        }
        working = clock.seconds["step"] - clock.seconds.get("eval", 0.0)
        line |= _prefixed("seconds", clock.seconds)
        return line | {f"idle/{role}": max(0.0, 1 - seconds / working) for role, seconds in busy.items()}

    def _branch_std(self, experience: Experience) -> list[float]:
        """Mean over decisions of the siblings' reward std, by sampling step; with K = 1, over all seeds."""
        spread: list[list[float]] = [[] for _ in range(self.config.policy.num_steps)]
        for task, reward_M in zip(experience.generated, experience.rewards, strict=True):
            reward_NK = task.tree.reduce(reward_M)
            for i in np.unique(task.tree.step_N):
                rows_NK = reward_NK[task.tree.step_N == i]
                groups = rows_NK if rows_NK.shape[1] > 1 else rows_NK.T
                spread[i] += [float(np.nanstd(group)) for group in groups if not np.isnan(group).all()]
        return [float(np.mean(values)) if values else float("nan") for values in spread]


def _prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
