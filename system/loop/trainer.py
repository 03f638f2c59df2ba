"""The training loop: take experience, update, export and publish the weights, evaluate, save."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from actors.lost import Lost
from actors.policy.weights import Exported
from services.base.errors import UserError, first_line
from services.base.logs import at
from system.loop.collect import Collector
from system.loop.evaluate import evaluate
from system.loop.evaluation import Evaluation, best_by
from system.loop.heldout import HeldOut
from system.loop.prompts import Prompts
from system.loop.recorder import Recorder, after_step
from system.loop.roles import Roles
from system.loop.saver import Saver
from system.loop.stop import Stopped
from system.recipe.model import RunConfig
from system.run.checkpoint import RunState
from system.run.folder import RunFolder

log = logging.getLogger(__name__)

MAX_LOSSES = 3
"""The run ends when something is lost this many times without a new checkpoint in between."""


@dataclass
class Clock:
    """Seconds of one step, by stage. It starts when it is made."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    def stop(self) -> dict[str, float]:
        """The seconds of each stage, and of the whole step as `step`."""
        return self.seconds | {"step": time.perf_counter() - self.started}


class Trainer:
    """Runs the steps of a recipe on live roles.

    Args:
        check_stop: raises Stopped when the run must end.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunFolder,
        roles: Roles,
        train: Prompts,
        heldout: Sequence[HeldOut],
        recorder: Recorder,
        check_stop: Callable[[], None],
    ) -> None:
        self.config, self.run, self.roles = config, run, roles
        self.train, self.heldout = train, heldout
        self.recorder, self.check_stop = recorder, check_stop
        self.saver = Saver(run, roles.learners)
        self.state = RunState()
        self.clock = Clock()
        """The clock of the current step. It starts when the step before is recorded, so no time is left out."""
        self.losses: Counter[int | None] = Counter()
        """How many times something was lost, by the step of the newest checkpoint at that time."""

    def fit(self) -> None:
        """Run all steps after the latest checkpoint. A stop leaves a checkpoint of the last whole step.

        If the learner or the data of a step is lost, the learner restarts from the latest checkpoint and the steps
        since then are repeated. Their tasks give the same bytes again, so each optimizer step counts once.

        Raises:
            Stopped: the run was stopped.
            UserError: something was lost for the third time without a new checkpoint.
        """
        self.recorder.describe(self.roles.learners.describe())
        for note in self.run.notes:
            log.warning(note)
        self.saver.claim()
        lost: Lost | None = None
        while True:
            try:
                if lost:
                    self._restart(lost)
                self._train()
                return self.saver.last(self.state)
            except Lost as loss:
                self.losses[self.saver.sealed_step] += 1
                if self.losses[self.saver.sealed_step] == MAX_LOSSES:
                    raise UserError(
                        f"the learner, or what it needs, was lost {MAX_LOSSES} times without a new checkpoint, at last "
                        f"because {first_line(loss)}; read logs/learner-*.log (rollout-*.log if colocated), remove the "
                        "cause and continue with --resume"
                    ) from loss
                lost = loss
            except Stopped:
                self.saver.stopped(self.state)
                raise

    def _restart(self, lost: Lost) -> None:
        log.warning("the learner starts again at step %d: %s", self.state.step, first_line(lost))
        self.state = RunState()
        self.roles.learners.restart()

    def _train(self) -> None:
        """Make the steps from the latest checkpoint, or from the beginning if nothing is recorded, to the last one."""
        self._restore()
        with Collector(self.config, self.roles, self.train, self.state.step, self.check_stop) as collector:
            self._begin(collector)
            while not self._ended:
                with at(step=self.state.step):
                    self._publish(collector, self._step(collector))
        if self.state.step < self.config.steps:
            log.warning(
                "the run ends at step %d of %d: eval.patience = %d, the evaluations in a row without a new best score; "
                "%s has the best",
                self.state.step,
                self.config.steps,
                self.config.eval.patience,
                self.run.best,
            )

    @property
    def _ended(self) -> bool:
        """Whether all steps are made, or `eval.patience` evaluations have found no new best score."""
        patience = self.config.eval.patience
        return self.state.step >= self.config.steps or (
            patience is not None and self.state.evaluations_since_best >= patience
        )

    def _restore(self) -> None:
        found = self.saver.newest()
        if found is not None:
            self.state = found.state
            if self.state.step:
                self.roles.learners.restore(found.folder, self.state.step)
            self.run.forget_after(self.state.step)
        self.recorder.restored(self.state)

    def _begin(self, collector: Collector) -> None:
        """Start the steps that the policy versions up to the current one generate.

        The current version is evaluated if no evaluation of it is recorded: at the beginning of a run, in a new folder,
        or if the evaluation was interrupted.
        """
        learners, step = self.roles.learners, self.state.step
        for version in range(max(0, step - self.config.learner.max_staleness), step):
            collector.publish(learners.export(version))
        weights = learners.export(step)
        if self.run.last_step() != step:
            clock = Clock()
            with clock("eval"):
                evaluations = self._evaluate(step, weights)
            self.saver.first(self.state)
            self._count(evaluations)
            self.recorder.beginning(self.state, evaluations, clock.seconds["eval"])
        elif self._eval_due(step) and not self.run.has_eval(step, [one.name for one in self.heldout]):
            evaluations = self._evaluate(step, weights)
            self._count(evaluations)
            self.recorder.amend(evaluations)
        self.clock = Clock()
        self._publish(collector, weights)

    def _count(self, evaluations: Mapping[str, Evaluation]) -> None:
        """Count an evaluation that is made late as if it had been made in its step, if one was due there."""
        step = self.state.step
        if not step or not self._eval_due(step) or self.state.heldout is not None:
            return
        if (heldout := best_by(self.config, evaluations)) is not None:
            self.state = self.state.evaluated(heldout)
            self.saver.evaluated(self.state)

    def _publish(self, collector: Collector, weights: Exported) -> None:
        """Start the steps that the weights generate, unless the run has ended. With roles in this process, this
        generates them.
        """
        if not self._ended:
            with self.clock("generate"):
                collector.publish(weights)

    def _step(self, collector: Collector) -> Exported:
        """One training step. A stop before the update loses only this step's images.

        The checkpoint begins before the next step's tasks start. Otherwise a process that has both roles would answer
        only between two tasks, which may take longer than the learner may take to answer.

        Returns:
            The weights that the step made. They are published by the caller, when the step's experience is dropped.
        """
        learners, step, clock = self.roles.learners, self.state.step + 1, self.clock
        evaluations: dict[str, Evaluation] = {}
        with clock("generate"):
            experience = collector.take(step - 1, lambda done, of: self.recorder.stage(step, "generate", done, of))
        self.recorder.stage(step, "update")
        with clock("update"):
            tasks = [task.experience for task in experience.generated]
            stats = learners.update(tasks, experience.advantages.by_task, experience.behaviour)
        with clock("export"):
            weights = learners.export(step)
        try:
            if self._eval_due(step):
                with clock("eval"):
                    evaluations = self._evaluate(step, weights)
        finally:  # The update counts, even if the evaluation fails or is stopped.
            seconds, self.clock = clock.stop(), Clock()
            heldout = best_by(self.config, evaluations)
            self.state = after_step(self.state, experience, stats, heldout, seconds["step"])
            self.recorder.training_step(self.state, experience, stats, evaluations, seconds, weights.label, self.roles)
        with self.clock("checkpoint"):
            self.saver.seal()
            if step % self.config.checkpoint.every == 0 or heldout is not None:
                self.saver.begin(self.state)
        return weights

    def _eval_due(self, step: int) -> bool:
        return step % self.config.eval.every == 0 or step == self.config.steps

    def _evaluate(self, step: int, weights: Exported) -> dict[str, Evaluation]:
        """The held-out scores, by set, of the weights that a run saves: the moving average if there is one, or else the
        weights that are sampled from.
        """
        if not self.heldout:
            return {}
        if self.config.evaluates_an_average:
            weights = self.roles.learners.evaluated()
        evaluations = evaluate(
            self.roles,
            self.config,
            self.heldout,
            self.check_stop,
            weights,
            progress=lambda done, of: self.recorder.stage(step, "evaluate", done, of),
        )
        self.recorder.evaluation(step, evaluations)
        return evaluations
