"""The training loop: generate, score, compare, update, broadcast, evaluate, write down."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.learner.group import Exported, LearnerLost
from actors.learner.stats import UpdateStats
from actors.rollout.plans import make_plan
from actors.trajectory import Cost
from system.checkpoint import RunState, latest_checkpoint, save_checkpoint
from system.collect import Experience, collect
from system.config import RunConfig
from system.evaluate import Evaluation, evaluate
from system.experience import experience_table
from system.launch import Roles
from system.metrics import describe_rewards, describe_time, describe_update
from system.progress import Progress
from system.prompts import Prompts, tasks_of_step
from system.run_folder import RunFolder
from system.stop import Stopped

log = logging.getLogger(__name__)

MAX_LOSSES = 3
"""Losses of the learner without a new checkpoint between them."""


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
        self.state = RunState()
        self.saved_step = -1
        self.kept_exports: list[ray.ObjectRef] = []
        self.losses: Counter[int] = Counter()
        self.schedule: dict[str, list[float]] = {}

    def fit(self) -> None:
        """All steps of the run, from its latest checkpoint on; a stop leaves a checkpoint of the last whole step.

        A learner that is lost starts again from the latest checkpoint, and the steps since are made again: their tasks
        give the same bytes, so each optimizer step counts once.
        """
        self.schedule = {f"branch/{name}": values for name, values in self.roles.learner.describe().items()}
        lost = None
        while True:
            try:
                if lost:
                    self._restart(lost)
                self._begin()
                while self.state.step < self.config.steps:
                    self._step()
                return self._checkpoint()
            except LearnerLost as loss:
                self.losses[self.saved_step] += 1
                if self.losses[self.saved_step] == MAX_LOSSES:
                    raise
                lost = loss
            except Stopped:
                self._last_checkpoint()
                raise

    def _restart(self, lost: LearnerLost) -> None:
        """A new learner, to be restored."""
        log.warning("the learner is lost at step %d and starts again: %s", self.state.step, lost)
        self.state = RunState()
        self.roles.restart_learner()

    def _last_checkpoint(self) -> None:
        """That of a stopped run; a learner that is lost as well leaves the one before."""
        try:
            self._checkpoint()
        except LearnerLost as lost:
            log.warning("no checkpoint of step %d: %s", self.state.step, lost)

    def _begin(self) -> None:
        """Restore the latest checkpoint, or evaluate the model as it comes."""
        found = latest_checkpoint(self.run.checkpoints)
        if found is not None:
            folder, self.state = found
            self.roles.learner.restore(str(folder), self.state.step)
            self.saved_step = self.state.step
        self.run.forget_after(self.state.step if found else -1)
        self._broadcast()
        if found is None:
            clock = Clock()
            with clock("eval"):
                line = self._evaluate()
            self._record(line | {"seconds/eval": clock.seconds["eval"]})
        elif self._eval_due() and not self.run.has_eval(self.state.step):
            self.run.amend_metrics(self._evaluate())

    def _step(self) -> None:
        """One training step. Until the update nothing has changed, so a stop loses only this step's images."""
        started, clock = time.perf_counter(), Clock()
        self._show("generate", 0, self.config.data.prompts_per_step)
        tasks = tasks_of_step(
            self.train, self.config.data.prompts_per_step, self.state.step, self.config.seed, version=self.state.step
        )
        plans = [make_plan(self.config.plan, self.config.policy.num_steps, task.address) for task in tasks]
        with clock("generate"):
            experience = collect(
                self.config, self.roles, tasks, plans, lambda done, of: self._show("generate", done, of)
            )
        self._show("update")
        with clock("update"):
            stats = self._update(experience)
        self.state.step += 1
        with clock("broadcast"):
            weights_bytes = self._broadcast()
        self._spend(experience.cost + Cost(nfe=stats.nfe), experience.num_scores)
        self.run.write_experience(self.state.step, experience_table(experience))
        line = describe_rewards(self.config, experience) | describe_update(stats) | self.schedule
        workers = len(self.roles.fleet.workers)
        line |= {"bytes/weights": weights_bytes, "workers": workers, "workers_replaced": self.roles.fleet.replaced}
        line |= {"learner_restarts": self.roles.learner.restarts}
        try:
            if self._eval_due():
                with clock("eval"):
                    line |= self._evaluate()
        finally:
            clock.seconds["step"] = time.perf_counter() - started
            self.state.elapsed_s += clock.seconds["step"]
            self._record(line | describe_time(self.config, experience, stats, clock.seconds, workers))
        if self.state.step % self.config.checkpoint.every == 0:
            self._checkpoint()

    def _show(self, stage: str, done: int = 0, of: int = 0) -> None:
        self.progress.stage(self.state.step + 1, stage, done, of)

    def _update(self, experience: Experience) -> UpdateStats:
        return self.roles.learner.update(
            [task.experience for task in experience.generated], experience.advantages.by_task
        )

    def _broadcast(self) -> int:
        """Send the learner's weights to every worker and wait for all confirmations; returns their bytes."""
        return self._send(self.roles.learner.export(self.state.step))

    def _send(self, exported: Exported) -> int:
        self.roles.fleet.broadcast(exported.weights, exported.label)
        self.kept_exports = [*self.kept_exports[-1:], exported.weights]
        return exported.label.num_bytes

    def _eval_due(self) -> bool:
        return self.state.step % self.config.eval.every == 0 or self.state.step == self.config.steps

    def _evaluate(self) -> dict[str, Any]:
        """Held-out scores of the weights that are saved: the EMA where there is one."""
        if self.heldout is None:
            return {}
        if self.config.evaluates_an_average:
            self._send(self.roles.learner.evaluated())
        scorers = [scorer.name for scorer in self.config.scorers]
        result: Evaluation = evaluate(
            self.roles.fleet,
            self.roles.pool,
            self.heldout,
            scorers,
            self.config.eval,
            self.config.seed,
            self.config.eval_steps,
            progress=lambda done, of: self.progress.stage(self.state.step, "evaluate", done, of),
        )
        if self.config.evaluates_an_average:
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
            learner.save,
            self.config.checkpoint.keep,
        )
        learner.save_model(str(self.run.trained))
        self.saved_step = self.state.step

    def _spend(self, cost: Cost, scores: int) -> None:
        self.state.nfe += cost.nfe
        self.state.decodes += cost.decodes
        self.state.scores += scores

    def _record(self, line: dict[str, Any]) -> None:
        state = {"step": self.state.step, "version": self.state.step, "elapsed_s": self.state.elapsed_s}
        line = {"time": time.time(), **state, **line}
        line |= {"nfe": self.state.nfe, "decodes": self.state.decodes, "scores": self.state.scores}
        self.run.append_metrics(line)
        self.progress.finished(line)
