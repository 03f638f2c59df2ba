"""The report's figures, as inline SVG. Colours are mid-tones on a transparent ground: legible on light and dark."""

import io
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from system.report.data import Run, by_sampling_step

INK, GRID = "#8a8f98", "#8a8f9840"
COLOURS = ("#3b82c4", "#d97a2b", "#3f9c6d", "#a45bb5", "#c0504d", "#7a7f87")
STAGES = ("generate", "update", "broadcast", "eval")
ROLES = ("rollout", "reward", "learner")


def _figure(panels: int = 1, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.6 * panels if panels > 1 else 7.2, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    for axis in axes:
        _style(axis)
    return figure, axes


def _style(axis: Axes) -> None:
    axis.patch.set_alpha(0)
    axis.tick_params(colors=INK, labelsize=8)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(INK)
    for label in (axis.xaxis.label, axis.yaxis.label, axis.title):
        label.set_color(INK)
        label.set_fontsize(9)


def _labels(axis: Axes, x: str, y: str, legend: bool = True) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if legend and axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8, labelcolor=INK)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)


def _smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Centred running mean; the window shrinks at both ends."""
    half = window // 2
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def curves(run: Run) -> str | None:
    """Training reward of each scorer, and held-out scores, over training steps."""
    rewards = [s["name"] for s in run.config.get("scorers", []) if run.series(f"reward/{s['name']}/mean")[0]]
    held = [name for name in run.scorers if run.series(f"eval/{name}")[0]]
    if not rewards and not held:
        return None
    names = rewards[:1] + [name for name in held if name not in rewards[:1]]
    figure, axes = _figure(len(names))
    for axis, name in zip(axes, names, strict=True):
        steps, values = run.series(f"reward/{name}/mean")
        if steps:
            axis.plot(steps, values, color=COLOURS[0], alpha=0.35, linewidth=1)
            axis.plot(steps, _smooth(values, 5), color=COLOURS[0], linewidth=1.8, label="training prompts")
        steps, values = run.series(f"eval/{name}")
        axis.plot(steps, values, "o-", color=COLOURS[1], markersize=4, label="held-out prompts")
        for i, key in enumerate(sorted({k for line in run.lines for k in line if k.startswith(f"eval/{name}/")})):
            steps, values = run.series(key)
            label = key.split("/", 2)[2]
            axis.plot(steps, values, "o--", color=COLOURS[2 + i % 4], markersize=3, linewidth=1, label=label)
        axis.set_title(name)
        _labels(axis, "training step", "mean score")
    return _svg(figure)


def branch_spread(run: Run) -> str | None:
    """Reward spread of siblings by branch step, with the injected noise over it."""
    lines = [line for line in run.steps if line.get("branch/std")]
    if not lines:
        return None
    figure, (axis,) = _figure()
    third = max(1, len(lines) // 3)
    noise = by_sampling_step(lines, "branch/noise_level")
    whole = by_sampling_step(lines, "branch/std")
    drawn = np.flatnonzero(~np.isnan(whole))
    axis.bar(drawn, whole[drawn], color=COLOURS[0], alpha=0.45, width=0.7, label="reward std, all steps")
    if len(lines) >= 3:
        for chosen, colour, label in (
            (lines[:third], COLOURS[2], "first third"),
            (lines[-third:], COLOURS[3], "last third"),
        ):
            axis.plot(
                drawn, by_sampling_step(chosen, "branch/std")[drawn], "o-", color=colour, markersize=3, label=label
            )
    twin = axis.twinx()
    _style(twin)
    twin.grid(visible=False)
    twin.spines["right"].set_visible(True)
    twin.plot(drawn, noise[drawn], "s--", color=COLOURS[1], markersize=4, label="noise level s")
    twin.set_ylabel("injected noise s (latent std)")
    twin.set_ylim(bottom=0)
    axis.set_xticks(drawn)
    axis.set_xlabel("branch step i")
    axis.set_ylabel("reward std within a group")
    handles = [a.get_legend_handles_labels() for a in (axis, twin)]
    axis.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], frameon=False, fontsize=8, labelcolor=INK)
    return _svg(figure)


def health(run: Run) -> str | None:
    """Drift, ratio, clip fraction, gradient norm, flat groups and holes."""
    if not run.steps:
        return None
    figure, (left, middle, right) = _figure(3, 2.7)
    floor = 1e-9
    for key, label, colour in (
        ("drift/mean", "drift, mean of worst step", COLOURS[0]),
        ("drift/max", "drift, max", COLOURS[1]),
        ("ratio/max_deviation", "max |ρ − 1|", COLOURS[3]),
    ):
        steps, values = run.series(key)
        if any(value > 0 for value in values):
            left.plot(steps, np.maximum(values, floor), color=colour, linewidth=1.2, label=label)
    left.set_yscale("log")
    left.set_title("rollout against learner")
    _labels(left, "training step", "|Δ log p|, |ρ − 1|")
    middle.plot(*run.series("grad_norm"), color=COLOURS[0], linewidth=1.2)
    middle.set_title("gradient norm before clipping")
    middle.set_ylim(bottom=0)
    _labels(middle, "training step", "L2 norm", legend=False)
    right.plot(*run.series("advantage/flat_groups"), color=COLOURS[0], linewidth=1.2, label="groups without spread")
    right.plot(*run.series("ratio/clip_fraction"), color=COLOURS[1], linewidth=1.2, label="actions clipped")
    right.set_ylim(-0.02, 1.02)
    right.set_title("shares")
    _labels(right, "training step", "share")
    return _svg(figure)


def time_use(run: Run) -> str | None:
    """Seconds a stage, stacked, and the idle share of each role."""
    if not run.steps:
        return None
    figure, (left, right) = _figure(2, 2.9)
    steps = [line["step"] for line in run.steps]
    bottom = np.zeros(len(steps))
    for stage, colour in zip(STAGES, COLOURS, strict=False):
        seconds = np.array([line.get(f"seconds/{stage}") or 0.0 for line in run.steps])
        left.bar(steps, seconds, bottom=bottom, color=colour, width=0.9, alpha=0.8, label=stage)
        bottom += seconds
    left.set_title("seconds a step")
    _labels(left, "training step", "s")
    for role, colour in zip(ROLES, COLOURS, strict=False):
        right.plot(*run.series(f"idle/{role}"), color=colour, linewidth=1.4, label=role)
    right.set_ylim(-0.02, 1.02)
    right.set_title("idle share of each role")
    _labels(right, "training step", "share of the step")
    return _svg(figure)
