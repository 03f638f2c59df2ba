"""The figures of the time: the seconds of each stage, and the idle share of each role."""

import numpy as np
from matplotlib.axes import Axes

from system.report.canvas import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, Panel, draw, line, training_axis
from system.report.data import Run
from system.report.figures.common import shares_panel

SMALLEST_SHARE = 0.005
"""Stages with a smaller share of the total time are added to `other`. It is left out if its own share is smaller."""
STAGES = {"generate": BLUE, "update": ORANGE, "export": PURPLE, "eval": GREEN, "checkpoint": RED, "other": GREY}
"""The consecutive stages of a step, from the bottom of the figure up. Scoring runs during `generate`."""
ROLES = {"rollout": BLUE, "reward": GREEN, "learner": ORANGE}


def time_use(run: Run) -> list[Panel]:
    """The seconds of each stage, stacked, and the idle share of each role."""
    roles = {role: f"idle/{role}" for role in ROLES}
    idle = "Share of each step, without evaluation, in which the processes of a role wait; dashes mark the mean."
    return [
        _stages(run),
        shares_panel(run, roles, "Idle share", "share of the step", "idle", idle, tuple(ROLES.values()), True),
    ]


def _stages(run: Run) -> Panel:
    seconds = {stage: dict(zip(*run.series(f"seconds/{stage}"), strict=True)) for stage in (*STAGES, "score", "step")}
    for step, whole in seconds["step"].items():
        rest = whole - sum(seconds[stage].get(step, 0.0) for stage in STAGES if stage != "other")
        seconds["other"][step] = max(0.0, rest)
    recorded = sorted({step for stage in STAGES for step in seconds[stage] if step > 0})
    if not recorded:
        return Panel("Seconds per step", "Not recorded in this run.")
    along = range(recorded[0], recorded[-1] + 1)
    values = {stage: np.array([seconds[stage].get(step, 0.0) for step in along]) for stage in STAGES}
    total = sum(float(part.sum()) for part in values.values()) or 1.0
    for stage in STAGES:
        if stage != "other" and values[stage].sum() < SMALLEST_SHARE * total:
            values["other"] = values["other"] + values.pop(stage)
    shown = {stage: part for stage, part in values.items() if part.sum() >= SMALLEST_SHARE * total}

    def plot(axis: Axes) -> None:
        bottom = np.zeros(len(along))
        edges = np.arange(along.start, along.stop + 1) - 0.5
        for stage, part in shown.items():
            axis.stairs(
                bottom + part, edges, baseline=bottom, fill=True, color=STAGES[stage], alpha=0.75, lw=0, label=stage
            )
            bottom = bottom + part
        if seconds["score"]:
            line(axis, *run.series("seconds/score"), INK, "scoring", dashed=True)
        axis.set_ylim(bottom=0)
        training_axis(axis, "time (s)")

    parts = ", ".join(f"{stage} {part.sum() / total:.0%}" for stage, part in shown.items())
    scoring = "; the dashed line is the replicas' scoring work, which overlaps generation" if seconds["score"] else ""
    alt = f"Time by stage: {parts}; {total:.0f} s in all."
    return Panel("Seconds per step", f"Wall time of each step by stage ({parts}){scoring}.", alt, draw("stages", plot))
