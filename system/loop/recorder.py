"""Writing down what the training loop does: metrics, experience, evaluations, pictures, progress and telemetry."""

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
from system.loop.roles import Roles
from system.recipe.model import RunConfig
from system.run.checkpoint import RunState
from system.run.folder import RunFolder
from system.run.progress import Progress


class Exporter(Protocol):
    """Gives the metrics of a run to a monitoring system."""

    def restored(self, totals: Mapping[str, float]) -> None:
        """Count on from these values of keys that are totals."""

    def record(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics."""


class Recorder:
    """The run folder, the screen and the monitoring system of a run.

    Args:
        exporter: None where nothing monitors the run.
    """

    def __init__(self, config: RunConfig, run: RunFolder, progress: Progress, exporter: Exporter | None = None) -> None:
        self.config, self.run, self.progress, self.exporter = config, run, progress, exporter
        self.constants: dict[str, list[float]] = {}
        """What each line of a training step says of the recipe."""

    def describe(self, schedule: Mapping[str, list[float]]) -> None:
        """Take the noise level and the loss weight of each sampling step."""
        self.constants = {f"branch/{name}": values for name, values in schedule.items()}

    def restored(self, state: RunState) -> None:
        """Count from a state."""
        if self.exporter:
            self.exporter.restored(_totals(state))

    def stage(self, step: int, name: str, done: int = 0, of: int = 0) -> None:
        """Show what the loop does now."""
        self.progress.stage(step, name, done, of)

    def evaluation(self, step: int, evaluations: Mapping[str, Evaluation]) -> None:
        """Write the scores and pictures of each set."""
        for name, evaluation in evaluations.items():
            self.run.write_eval(step, evaluation.table, name)
            self.run.write_samples(step, evaluation.grid_NHWC, name)

    def beginning(self, state: RunState, evaluations: Mapping[str, Evaluation], eval_s: float) -> None:
        """Record the state that the run begins with."""
        self._record(state, self._summary(evaluations) | {"seconds/eval": eval_s})

    def amend(self, evaluations: Mapping[str, Evaluation]) -> None:
        """Add an evaluation to the last line that was recorded."""
        line = self._summary(evaluations)
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
            weights: those that the step made.
        """
        self.run.write_experience(state.step, experience_table(experience))
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
        self.run.append_metrics(whole)
        if self.exporter:
            self.exporter.record(whole)
        self.progress.finished(whole)


def after_step(
    state: RunState, experience: Experience, stats: UpdateStats, heldout: float | None, step_s: float
) -> RunState:
    """The state of a run after a training step.

    Args:
        heldout: the score that chooses the best checkpoint, of the new policy; None where it was not evaluated.
    """
    cost = experience.cost + Cost(nfe=stats.nfe)
    return replace(
        state,
        step=state.step + 1,
        nfe=state.nfe + cost.nfe,
        decodes=state.decodes + cost.decodes,
        scores=state.scores + experience.num_scores,
        elapsed_s=state.elapsed_s + step_s,
        heldout=heldout,
    )


def _totals(state: RunState) -> dict[str, int]:
    """What a checkpoint carries on."""
    return {"step": state.step, "nfe": state.nfe, "decodes": state.decodes, "scores": state.scores}
