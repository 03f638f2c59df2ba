"""Writing down what the training loop does: metrics and warnings, experience, evaluations, pictures, and progress."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from actors.learner.stats import UpdateStats
from actors.policy.weights import Label
from actors.rollout.results import RolloutStatus
from actors.trajectory import Cost
from system.loop.evaluation import Evaluation
from system.loop.experience import Experience
from system.loop.experience_table import experience_table
from system.loop.metrics import describe_rewards, describe_time, describe_update
from system.loop.pictures import best_and_worst, decoded, heldout_captions
from system.loop.roles import Roles
from system.loop.warnings import Warnings
from system.recipe.model import RunConfig
from system.run.checkpoint import RunState
from system.run.folder import RunFolder
from system.run.progress import Progress

log = logging.getLogger(__name__)


class Exporter(Protocol):
    """Gives the metrics of a run to a monitoring system."""

    def restored(self, totals: Mapping[str, float]) -> None:
        """Continue counting from these totals, by key."""

    def record(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics."""


class Recorder:
    """The run folder, the screen and the monitoring system of a run.

    Args:
        exporter: None if nothing monitors the run.
    """

    def __init__(self, config: RunConfig, run: RunFolder, progress: Progress, exporter: Exporter | None = None) -> None:
        self.config, self.run, self.progress, self.exporter = config, run, progress, exporter
        self.constants: dict[str, list[float]] = {}
        """Metrics that are the same at every training step."""
        self.warnings = Warnings(config)

    def describe(self, schedule: Mapping[str, list[float]]) -> None:
        """Take the noise level and the loss weight of each sampling step."""
        self.constants = {f"branch/{name}": values for name, values in schedule.items()}

    def restored(self, state: RunState) -> None:
        """Continue from a state, whose steps are recorded in the run folder."""
        self.warnings = Warnings(self.config)
        for line in self.run.read_metrics():
            self.warnings.after(line)
        self.progress.restored(state.step)
        if self.exporter:
            self.exporter.restored(_totals(state))

    def stage(self, step: int, name: str, done: int = 0, of: int = 0) -> None:
        """Show what the loop does now."""
        self.progress.stage(step, name, done, of)

    def evaluation(self, step: int, evaluations: Mapping[str, Evaluation]) -> None:
        """Write the scores and pictures of each set."""
        for name, evaluation in evaluations.items():
            self.run.write_eval(step, evaluation.table, name)
            captions = heldout_captions(evaluation.table, len(evaluation.grid_NHWC))
            self.run.write_samples(step, evaluation.grid_NHWC, captions, name)

    def beginning(self, state: RunState, evaluations: Mapping[str, Evaluation], eval_s: float) -> None:
        """Record the state that the run begins with."""
        self._record(state, self._summary(evaluations) | {"seconds/eval": eval_s})

    def amend(self, evaluations: Mapping[str, Evaluation]) -> None:
        """Add an evaluation to the last line that was recorded."""
        last, line = self.run.read_metrics()[-1], self._summary(evaluations)
        if said := self._warn({"step": last["step"], **line}):
            line["warnings"] = [*last.get("warnings", []), *said]
        self.run.amend_metrics(line)
        if self.exporter:
            self.exporter.record(line)

    def training_step(
        self,
        state: RunState,
        experience: Experience,
        stats: UpdateStats,
        evaluations: Mapping[str, Evaluation],
        seconds: dict[str, float],
        weights: Label,
        roles: Roles,
    ) -> None:
        """Record a training step.

        Args:
            state: the state after the step.
            seconds: by stage.
            weights: the label of the weights that the step made.
        """
        table = experience_table(experience)
        self.run.write_experience(state.step, table)
        if experience.pictures is not None:
            self.run.write_pictures(state.step, experience.pictures)
            if evaluations and self.run.loggers:
                images, captions = best_and_worst(experience.pictures, table)
                self.run.log_training(state.step, decoded(images), captions)
        status: RolloutStatus = roles.rollouts.status()
        line = self._summary(evaluations)
        line |= {"bytes/weights": weights.num_bytes, "workers": status.workers, "workers_replaced": status.replaced}
        line |= {"learner_restarts": roles.learners.restarts, "staleness": state.step - 1 - experience.behaviour}
        line |= describe_rewards(self.config, experience) | describe_update(stats) | self.constants
        self._record(state, line | describe_time(self.config, experience, stats, seconds, status.workers))

    def _summary(self, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
        return {key: value for one in evaluations.values() for key, value in one.summary().items()}

    def _record(self, state: RunState, line: Mapping[str, Any]) -> None:
        now = {"version": state.step, "elapsed_s": state.elapsed_s}
        whole = {"time": time.time(), **_totals(state), **now, **line}
        if said := self._warn(whole):
            whole["warnings"] = said
        self.run.append_metrics(whole)
        if self.exporter:
            self.exporter.record(whole)
        self.progress.finished(whole)

    def _warn(self, line: Mapping[str, Any]) -> list[str]:
        said = self.warnings.after(line)
        for sentence in said:
            log.warning("%s", sentence)
        return said


def after_step(
    state: RunState, experience: Experience, stats: UpdateStats, heldout: float | None, step_s: float
) -> RunState:
    """The state of a run after a training step.

    Args:
        heldout: the new policy's score that chooses the best checkpoint; None if it was not evaluated.
    """
    cost = experience.cost + Cost(nfe=stats.nfe)
    after = replace(
        state,
        step=state.step + 1,
        nfe=state.nfe + cost.nfe,
        decodes=state.decodes + cost.decodes,
        scores=state.scores + experience.num_scores,
        elapsed_s=state.elapsed_s + step_s,
    )
    return after.evaluated(heldout)


def _totals(state: RunState) -> dict[str, int]:
    """The totals that a checkpoint stores, so that a resumed run continues them."""
    return {"step": state.step, "nfe": state.nfe, "decodes": state.decodes, "scores": state.scores}
