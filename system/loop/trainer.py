"""The training loop: take experience, update, publish the weights, evaluate, write down."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ray.exceptions import ObjectLostError

from actors.learner.group import LearnerLost
from actors.policy.weights import Exported
from actors.trajectory import Cost
from services.base.errors import UserError, first_line
from services.base.logs import at
from services.base.storage import sync_files
from system.launch.roles import Roles
from system.loop.collect import Collector
from system.loop.evaluate import Evaluation, evaluate
from system.loop.experience_table import experience_table
from system.loop.metrics import describe_rewards, describe_time, describe_update
from system.loop.prompts import Prompts
from system.loop.stop import Stopped
from system.recipe.model import RunConfig
from system.run.checkpoint import RunState
from system.run.folder import RunFolder
from system.run.progress import Progress
from system.run.telemetry import Telemetry

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
        self.checkpoints = run.checkpoints(config.checkpoint)
        self.saving: RunState | None = None
        """A checkpoint whose files are being written."""
        self.saved_step = -1
        self.losses: Counter[int] = Counter()
        self.schedule: dict[str, list[float]] = {}

    def fit(self) -> None:
        """All steps of the run, from its latest checkpoint on; a stop leaves a checkpoint of the last whole step.

        A learner that is lost starts again from the latest checkpoint, and the steps since are made again: their tasks
        give the same bytes, so each optimizer step counts once. So does one whose experience, images or weights are
        gone with the node that held them.
        """
        self.schedule = {f"branch/{name}": values for name, values in self.roles.learner.describe().items()}
        for note in self.run.notes:
            log.warning(note)
        self._claim()
        with Telemetry(self.config.name, self._live) as self.telemetry:
            self._fit()

    def _claim(self) -> None:
        """Be the one driver that writes checkpoints.

        Raises:
            UserError: they cannot be written.
        """
        try:
            self.checkpoints.claim()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"no checkpoint can be written to {self.checkpoints.folder} ({first_line(error)}); "
            "make room or mount it, or set checkpoint.folder to another place"
        )

    def _fit(self) -> None:
        lost: Exception | None = None
        while True:
            try:
                if lost:
                    self._restart(lost)
                self._run()
                return self._last_checkpoint()
            except (LearnerLost, ObjectLostError) as loss:
                self.losses[self.saved_step] += 1
                if self.losses[self.saved_step] == MAX_LOSSES:
                    raise
                lost = loss
            except Stopped:
                self._stopped()
                raise

    def _restart(self, lost: Exception) -> None:
        """A new learner, to be restored."""
        log.warning("the learner starts again at step %d: %s", self.state.step, first_line(lost))
        self.state, self.saving = RunState(), None
        self.roles.restart_learner()

    def _last_checkpoint(self) -> None:
        """That of the end.

        Raises:
            UserError: it cannot be written.
        """
        self._checkpoint()
        self._seal(wait=True)
        if self.saved_step != self.state.step:
            raise UserError(
                f"the checkpoint of step {self.state.step} cannot be written to {self.checkpoints.folder} "
                f"(logs/driver.log says why); make room there and continue with --resume from step {self.saved_step}"
            )
        if not self.run.trained.exists():
            self._save_model()

    def _stopped(self) -> None:
        """The checkpoint of a stopped run; a learner that is lost as well leaves the one before. There is nothing to
        keep of a run that has recorded nothing.
        """
        if not self.run.begun:
            return
        try:
            self._last_checkpoint()
        except LearnerLost as lost:
            log.warning("no checkpoint of step %d: %s", self.state.step, lost)

    def _run(self) -> None:
        """From the latest checkpoint, or of a run that has recorded nothing from the beginning, to the last step."""
        found = self.run.newest_checkpoint(self.checkpoints, self.config.steps)
        if found is not None:
            self.checkpoints.check_claim()
            self.state = found.state
            if self.state.step:
                self.roles.learner.restore(found.folder, self.state.step)
            self.saved_step = self.state.step
            self.run.forget_after(self.state.step)
        self.telemetry.restored(self._totals())
        with Collector(self.config, self.roles, self.train, self.state.step, self.check_stop) as collector:
            self._begin(collector)
            while self.state.step < self.config.steps:
                with at(step=self.state.step):
                    self._step(collector)

    def _begin(self, collector: Collector) -> None:
        """Start what the versions up to this one generate; evaluate this one where the metrics lack it: the model as it
        comes, a resumed run's first line in a new folder, or an evaluation that was cut off.
        """
        learner = self.roles.learner
        for version in range(max(0, self.state.step - self.config.learner.max_staleness), self.state.step):
            collector.publish(learner.export(version))
        sampled = learner.export(self.state.step)
        if self.run.last_step() != self.state.step:
            clock = Clock()
            with clock("eval"):
                line = self._evaluate(sampled)
            if self.saved_step < 0:
                self._first_checkpoint()
            self._record(line | {"seconds/eval": clock.seconds["eval"]})
        elif self._eval_due() and not self.run.has_eval(self.state.step):
            line = self._evaluate(sampled)
            self.run.amend_metrics(line)
            self.telemetry.record(line)
        collector.publish(sampled)

    def _step(self, collector: Collector) -> None:
        """One training step. Until the update nothing has changed, so a stop loses only this step's images."""
        started, clock = time.perf_counter(), Clock()
        learner, fleet = self.roles.learner, self.roles.fleet
        with clock("generate"):
            experience = collector.take(self.state.step, lambda done, of: self._show("generate", done, of))
        self._show("update")
        with clock("update"):
            stats = learner.update(
                [task.experience for task in experience.generated],
                experience.advantages.by_task,
                experience.behaviour,
            )
        self.state = replace(self.state, step=self.state.step + 1, heldout=None)
        with clock("export"):
            sampled = learner.export(self.state.step)
        line: dict[str, Any] = {}
        try:
            if self._eval_due():
                with clock("eval"):
                    line = self._evaluate(sampled)
            collector.publish(sampled)
        finally:
            clock.seconds["step"] = time.perf_counter() - started
            cost = experience.cost + Cost(nfe=stats.nfe)
            self.state = replace(
                self.state,
                nfe=self.state.nfe + cost.nfe,
                decodes=self.state.decodes + cost.decodes,
                scores=self.state.scores + experience.num_scores,
                elapsed_s=self.state.elapsed_s + clock.seconds["step"],
                heldout=self._heldout_reward(line),
            )
            self.run.write_experience(self.state.step, experience_table(experience))
            workers = len(fleet.workers)
            line |= {"bytes/weights": sampled.label.num_bytes, "workers": workers, "workers_replaced": fleet.replaced}
            line |= {"learner_restarts": learner.restarts, "staleness": self.state.step - 1 - experience.behaviour}
            line |= describe_rewards(self.config, experience) | describe_update(stats) | self.schedule
            self._record(line | describe_time(self.config, experience, stats, clock.seconds, workers))
        self._seal()
        if self.state.step % self.config.checkpoint.every == 0 or self.state.heldout is not None:
            self._checkpoint()

    def _show(self, stage: str, done: int = 0, of: int = 0) -> None:
        self.progress.stage(self.state.step + 1, stage, done, of)

    def _eval_due(self) -> bool:
        return self.state.step % self.config.eval.every == 0 or self.state.step == self.config.steps

    def _evaluate(self, sampled: Exported) -> dict[str, Any]:
        """Held-out scores of the weights that are saved: those that are sampled from, or the EMA where there is one."""
        if self.heldout is None:
            return {}
        weights = self.roles.learner.evaluated() if self.config.evaluates_an_average else sampled
        scorers = [scorer.name for scorer in self.config.scorers]
        result: Evaluation = evaluate(
            self.roles.fleet,
            self.roles.pool,
            self.heldout,
            scorers,
            self.config.weights,
            self.config.eval,
            self.config.seed,
            self.config.eval_steps,
            self.check_stop,
            weights,
            progress=lambda done, of: self.progress.stage(self.state.step, "evaluate", done, of),
        )
        self.run.write_eval(self.state.step, result.table)
        self.run.write_samples(self.state.step, result.grid_NHWC)
        return result.summary(scorers)

    def _first_checkpoint(self) -> None:
        """That of step 0, sealed before anything is recorded: a run that has records and no checkpoint has lost them.

        Raises:
            UserError: it cannot be written.
        """
        try:
            self.checkpoints.begin(self.state.step)
            self.checkpoints.commit(self.state, {}, self.run.recipe)
        except OSError as error:
            raise self._unwritable(error) from error
        self.saved_step = self.state.step

    def _checkpoint(self) -> None:
        """Begin to write the state of the last whole step, unless that is done already. Where it cannot be written the
        one before it stays.
        """
        if self.state.step in (self.saved_step, self.saving.step if self.saving else None):
            return
        self._seal(wait=True)
        try:
            self.roles.learner.save(self.checkpoints.begin(self.state.step))
            self.saving = self.state
        except OSError as error:
            log.warning("no checkpoint of step %d: %s", self.state.step, first_line(error))
        self._save_model()

    def _save_model(self) -> None:
        """The evaluated weights in diffusers' layout, on the disk before the checkpoint of their step is sealed."""
        self.roles.learner.save_model(str(self.run.trained))
        if self.run.trained.is_dir():  # A learner on another node may have a disk of its own.
            sync_files(self.run.trained)

    def _seal(self, wait: bool = False) -> None:
        """Make the checkpoint that is being written count, if its files are there. One that cannot be written leaves
        the one before it.
        """
        if self.saving is None:
            return
        try:
            digests = self.roles.learner.saved(wait)
            if digests is None:
                return
            self.checkpoints.commit(self.saving, digests, self.run.recipe)
            self.saved_step = self.saving.step
        except OSError as error:
            log.warning("no checkpoint of step %d: %s", self.saving.step, first_line(error))
        self.saving = None

    def _heldout_reward(self, line: dict[str, Any]) -> float | None:
        """What is trained for, on held-out prompts; None where it is not known, or of too few images: those that have a
        score may be the easy ones.
        """
        reward = sum(weight * line.get(f"eval/{name}", math.nan) for name, weight in self.config.weights.items())
        holes = max((line.get(f"eval_holes/{name}", 0) for name in self.config.weights), default=0)
        images = min(self.config.eval.prompts, len(self.heldout or ()))
        return None if math.isnan(reward) or holes > self.config.reward.max_hole_share * images else reward

    def _record(self, line: dict[str, Any]) -> None:
        state = {"version": self.state.step, "elapsed_s": self.state.elapsed_s}
        line = {"time": time.time(), **self._totals(), **state, **line}
        self.run.append_metrics(line)
        self.telemetry.record(line)
        self.progress.finished(line)

    def _totals(self) -> dict[str, int]:
        """What a checkpoint carries on."""
        state = self.state
        return {"step": state.step, "nfe": state.nfe, "decodes": state.decodes, "scores": state.scores}

    def _live(self) -> dict[str, int]:
        fleet = self.roles.fleet
        held = {f"workers/{slot}/version": version for slot, version in fleet.versions().items()}
        return {"steps": self.config.steps, "workers": len(fleet.workers), **held}
