"""The report's figures. Each function reads a run and returns panels: an SVG with its texts, or what is missing."""

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from system.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SERIES,
    Panel,
    cost_axis,
    draw,
    line,
    link_steps,
    log_axis,
    second_axis,
    training_axis,
)
from system.report.data import Run, by_sampling_step
from system.report.step_images import shown_steps

SMOOTHING_STEPS = 5
FEWEST_STEPS_TO_SMOOTH = 10
FEWEST_STEPS_TO_CORRELATE = 5
SMALLEST_SHARE = 0.005
"""Stages with a smaller share of the total time are added to `other`."""
STAGES = {"generate": BLUE, "update": ORANGE, "export": PURPLE, "eval": GREEN, "checkpoint": RED, "other": GREY}
"""The consecutive stages of a step, from the bottom of the figure up. Scoring runs during `generate`."""
ROLES = {"rollout": BLUE, "reward": GREEN, "learner": ORANGE}


def curves(run: Run) -> list[Panel]:
    """Training reward and held-out scores over training steps, one panel per scorer."""
    trained = _trained_scores(run)
    panels = [_score_curve(run, name, i) for i, name in enumerate(score_names(run))]
    steps, values = run.series("reward/mean")
    if sum("." not in name for name in trained) > 1 and steps:
        panels.insert(0, _combined_curve(run, steps, values))
    shares = {name: f"reward/{name}/share" for name in trained if run.series(f"reward/{name}/share")[0]}
    if shares:
        said = "Share of each training scorer in the advantages: the mean size of its summand, over that of all."
        panels.append(_shares(run, shares, "Rewards in the advantage", "share", "rewards", said))
    return [*panels, *(_set_curve(run, key, i) for i, key in enumerate(_set_keys(run)))]


def _set_keys(run: Run) -> list[str]:
    """The keys of the mean scores of named held-out sets, as `eval.SET/SCORER`."""
    keys = {key for recorded in run.lines for key in recorded if key.startswith("eval.") and key.count("/") == 1}
    return sorted(key for key in keys if run.series(key)[0])


def _set_curve(run: Run, key: str, index: int) -> Panel:
    name, scorer = key.removeprefix("eval.").split("/")
    held = run.series(key)

    def plot(axis: Axes) -> None:
        axis.plot(*held, "o-", color=ORANGE, linewidth=1.5, ms=4, label=name)
        training_axis(axis, f"mean score of {scorer}")
        cost_axis(axis, *run.series("nfe"))

    caption = f"Mean score of the held-out set {name}, drawn without noise."
    return Panel(f"{scorer} of the set {name}", caption, _ends("Held out:", *held), draw(f"set{index}", plot))


def score_names(run: Run) -> list[str]:
    """The scores that have a curve: first the recipe's scorers in its order, then any others."""
    known = {*_trained_scores(run), *run.scorers}
    names = [name for name in run.weights if name in known] + sorted(known - set(run.weights))
    return [name for name in names if run.series(f"reward/{name}/mean")[0] or run.series(f"eval/{name}")[0]]


def _trained_scores(run: Run) -> list[str]:
    """The scorers and sub-scores whose mean over the training images is recorded."""
    parts = [key.split("/") for key in {key for recorded in run.lines for key in recorded}]
    return sorted(part[1] for part in parts if len(part) == 3 and (part[0], part[2]) == ("reward", "mean"))


def score_plot(run: Run, name: str, linked: Collection[int] = ()) -> Callable[[Axes], None]:
    """Draws one score over training steps: that of the training images, the held-out one, and its categories.

    Args:
        linked: steps that lead to their images in the page.
    """
    train, held, categories = run.series(f"reward/{name}/mean"), run.series(f"eval/{name}"), _categories(run, name)

    def plot(axis: Axes) -> None:
        if train[0]:
            _smoothed(axis, *train, BLUE, "training")
        if held[0]:
            axis.plot(*held, "o-", color=ORANGE, linewidth=1.5, ms=4, label="held out", zorder=3)
        for (steps, values), colour in ((train, BLUE), (held, ORANGE)):
            if rings := [point for point in zip(steps, values, strict=True) if point[0] in linked]:
                link_steps(axis, [step for step, _ in rings], [value for _, value in rings], colour)
        for (category, points), colour in zip(categories, (GREEN, PURPLE, GREY), strict=False):
            if points[0]:
                axis.plot(*points, "s--", color=colour, linewidth=1, ms=2.8, label=category)
        training_axis(axis, f"mean score of {name}")
        cost_axis(axis, *run.series("nfe"))

    return plot


def _categories(run: Run, name: str) -> list[tuple[str, tuple[list[int], list[float]]]]:
    """The held-out score of each category over training steps."""
    prefix = f"eval/{name}/"
    keys = sorted({key for recorded in run.lines for key in recorded if key.startswith(prefix)})
    return [(key.removeprefix(prefix), run.series(key)) for key in keys]


def _score_curve(run: Run, name: str, index: int) -> Panel:
    train, held, categories = run.series(f"reward/{name}/mean"), run.series(f"eval/{name}"), _categories(run, name)
    parts = []
    if train[0]:
        parts.append("of each step's training images, drawn with noise" + _smoothing_note(train[0]))
    if held[0]:
        parts.append("of the held-out prompts, drawn without noise" + (", with their categories" if categories else ""))
    alt = " ".join(_ends(label, *points) for label, points in (("Training:", train), ("Held out:", held)) if points[0])
    role = run.roles.get(name, "training reward" if train[0] else "not trained on")
    title = f"{name}, {'sub-score' if '.' in name else role}"
    plot = score_plot(run, name, shown_steps(run))
    return Panel(title, f"Mean score {', and '.join(parts)}.", alt, draw(f"score{index}", plot))


def _combined_curve(run: Run, steps: list[int], values: list[float]) -> Panel:
    def plot(axis: Axes) -> None:
        _smoothed(axis, steps, values, BLUE, "training")
        training_axis(axis, "weighted sum of scores")
        cost_axis(axis, *run.series("nfe"))

    caption = f"Weighted sum of the training scorers, mean over each step's images{_smoothing_note(steps)}."
    return Panel("Combined reward", caption, _ends("Combined reward:", steps, values), draw("combined", plot))


def branches(run: Run) -> list[Panel]:
    """The reward spread of siblings and the injected noise by branch step, and the loss weights."""
    lines = [recorded for recorded in run.steps if isinstance(recorded.get("branch/std"), list)]
    spread, noise = by_sampling_step(lines, "branch/std"), by_sampling_step(lines, "branch/noise_level")
    drawn = np.flatnonzero(~np.isnan(spread))
    panels = [_spread(lines, spread, noise, drawn)] if len(drawn) else []
    weight = by_sampling_step(run.steps, "branch/weight")
    if np.isfinite(weight).any():
        panels.append(_weights(weight))
    return panels


def _spread(lines: list[dict], spread: np.ndarray, noise: np.ndarray, drawn: np.ndarray) -> Panel:
    third = len(lines) // 3

    def plot(axis: Axes) -> None:
        axis.bar(drawn, spread[drawn], color=BLUE, alpha=0.4, width=0.72, label="reward std, all steps")
        for chosen, colour, label in ((lines[:third], GREEN, "first third"), (lines[-third:], PURPLE, "last third")):
            part = by_sampling_step(chosen, "branch/std") if third else np.array([])
            shown = np.flatnonzero(~np.isnan(part))
            if len(shown):
                axis.plot(shown, part[shown], "o-", color=colour, ms=3, linewidth=1.2, label=label)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("sampling step i (0 starts from pure noise)")
        axis.set_ylabel("reward std within a group")
        if np.isfinite(noise).any():
            twin = second_axis(axis, "noise level s (std in the latent)")
            twin.plot(np.arange(len(noise)), noise, "D--", color=ORANGE, ms=3.5, linewidth=1.2, label="noise level s")
            twin.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))

    caption = (
        "Mean standard deviation of the rewards within a group, by the step at which its branches leave the trunk, "
        f"and the noise s injected there{_correlation(spread, noise, drawn)}."
    )
    top = int(drawn[np.argmax(spread[drawn])])
    alt = f"Reward std by sampling step: largest at step {top} with {spread[top]:.3g}; {_list(spread)}."
    return Panel("Reward spread by branch step", caption, alt, draw("spread", plot))


def _correlation(spread: np.ndarray, noise: np.ndarray, drawn: np.ndarray) -> str:
    both = [i for i in drawn if i < len(noise) and not math.isnan(noise[i])]
    if len(both) < FEWEST_STEPS_TO_CORRELATE or np.std(spread[both]) == 0 or np.std(noise[both]) == 0:
        return ""
    return f" (correlation over the steps: {np.corrcoef(spread[both], noise[both])[0, 1]:.2f})".replace("-", "−")


def _weights(weight: np.ndarray) -> Panel:
    def plot(axis: Axes) -> None:
        axis.bar(np.arange(len(weight)), np.nan_to_num(weight), color=ORANGE, alpha=0.65, width=0.72)
        axis.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("sampling step i (0 starts from pure noise)")
        axis.set_ylabel("loss weight w (factor)")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))

    caption = (
        "Weight of each sampling step's decisions in the loss; the dotted line is the weight 1 of an unweighted loss."
    )
    return Panel("Loss weight by step", caption, f"Loss weights: {_list(weight)}.", draw("weight", plot))


def health(run: Run) -> list[Panel]:
    """Drift, ratio, gradient norm, shares and holes over training steps."""
    clip, limit = run.section("objective").get("clip_range"), run.section("learner").get("max_grad_norm")
    drift = {"mean of the worst sampling step": "drift/mean", "maximum": "drift/max"}
    shares = {"groups without spread": "advantage/flat_groups", "actions clipped": "ratio/clip_fraction"}
    return [
        _log_panel(
            run,
            "Drift",
            drift,
            "|Δ log p| (nats per dimension)",
            "Distance between the rollout's and the learner's log-probability of the same action, before each update",
        ),
        _log_panel(
            run,
            "Ratio",
            {"max |ρ − 1|": "ratio/max_deviation"},
            "|ρ − 1|",
            "Largest deviation of the policy ratio ρ from 1 within each update",
            clip if isinstance(clip, int | float) and clip > 0 else None,
        ),
        _gradient(run, limit if isinstance(limit, int | float) else None),
        _shares(run, shares, "Groups and actions without effect", "share", "shares",
                "Share of the groups whose rewards do not differ, and of the actions whose gradient the clip cuts."),
        _holes(run),
    ]  # fmt: skip


def _log_panel(run: Run, title: str, keys: dict[str, str], y: str, caption: str, clip: float | None = None) -> Panel:
    series = {label: run.series(key) for label, key in keys.items()}
    recorded = [value for _, values in series.values() for value in values]
    positive = [value for value in recorded if value > 0]
    if not recorded:
        return Panel(title, "Not recorded in this run.")
    if not positive:
        return Panel(title, f"{caption}: exactly 0 in every step.")

    def plot(axis: Axes) -> None:
        for (label, (steps, values)), colour in zip(series.items(), (BLUE, ORANGE), strict=False):
            if any(value > 0 for value in values):
                line(axis, steps, [value if value > 0 else math.nan for value in values], colour, label)
        shown = positive
        if clip is not None:
            axis.axhline(clip, color=INK, linewidth=0.9, linestyle=":", label=f"clip range {clip:g}")
            shown = [*positive, clip]
        log_axis(axis, shown)
        training_axis(axis, y)

    zeros = len(recorded) - len(positive)
    note = f"; {zeros} values of 0 are not shown, because the axis is logarithmic" if zeros else ""
    alt = " ".join(_ends(f"{label}:", *points) for label, points in series.items() if points[0])
    return Panel(title, f"{caption}{note}.", alt, draw(title.lower(), plot))


def _gradient(run: Run, limit: float | None) -> Panel:
    steps, values = run.series("grad_norm")
    if not steps:
        return Panel("Gradient norm", "Not recorded in this run.")
    shown = limit if limit is not None and limit < 2 * max(values) else None

    def plot(axis: Axes) -> None:
        line(axis, steps, values, BLUE, "gradient norm")
        if shown is not None:
            axis.axhline(shown, color=INK, linewidth=0.9, linestyle=":", label=f"clipped to {shown:g}")
        axis.set_ylim(bottom=0)
        training_axis(axis, "L2 norm")

    far = f"; all values are well below the clip limit {limit:g}" if limit is not None and shown is None else ""
    caption = f"Norm of the gradient before clipping, mean over the optimizer steps of each update{far}."
    return Panel("Gradient norm", caption, _ends("Gradient norm:", steps, values), draw("gradient", plot))


def _holes(run: Run) -> Panel:
    steps, values = run.series("holes")
    if not steps:
        return Panel("Holes", "Not recorded in this run.")
    if not any(values):
        return Panel("Holes", "No score failed: every action of every step has a reward.")

    def plot(axis: Axes) -> None:
        axis.bar(steps, values, color=BLUE, alpha=0.7, width=0.9)
        axis.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        training_axis(axis, "actions without a reward")

    caption = (
        f"Actions of each step whose score failed, {sum(values):,.0f} in all; they are left out, never set to a number."
    )
    return Panel("Holes", caption, f"Holes: {sum(values):.0f} over {len(steps)} steps.", draw("holes", plot))


def time_use(run: Run) -> list[Panel]:
    """The seconds of each stage, stacked, and the idle share of each role."""
    roles = {role: f"idle/{role}" for role in ROLES}
    idle = "Share of each step, without evaluation, in which the processes of a role wait; dashes mark the mean."
    return [
        _stages(run),
        _shares(run, roles, "Idle share", "share of the step", "idle", idle, tuple(ROLES.values()), True),
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
    shown = {stage: part for stage, part in values.items() if part.any()}

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


def _shares(
    run: Run,
    keys: dict[str, str],
    title: str,
    y: str,
    name: str,
    caption: str,
    colours: Sequence[str] = SERIES,
    means: bool = False,
) -> Panel:
    """Lines of shares in percent. With `means`, each line's mean is in the legend and drawn across the figure."""
    series = {label: run.series(key) for label, key in keys.items()}
    if not any(steps for steps, _ in series.values()):
        return Panel(title, "Not recorded in this run.")

    def plot(axis: Axes) -> None:
        for (label, (steps, values)), colour in zip(series.items(), colours, strict=False):
            if steps:
                line(axis, steps, values, colour, f"{label}, mean {np.mean(values):.0%}" if means else label)
                if means:
                    axis.axhline(float(np.mean(values)), color=colour, linewidth=0.9, linestyle="--", alpha=0.6)
        axis.set_ylim(-0.02, 1.02)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        training_axis(axis, y)

    alt = " ".join(f"{label}: mean {np.mean(points[1]):.0%}." for label, points in series.items() if points[0])
    return Panel(title, caption, alt, draw(name, plot))


def _smoothed(axis: Axes, steps: list[int], values: list[float], colour: str, label: str) -> None:
    """Draw a line with its running mean, or the line alone if it has few points."""
    if len(steps) < FEWEST_STEPS_TO_SMOOTH:
        line(axis, steps, values, colour, label)
        return
    axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.9)
    axis.plot(steps, running_mean(values, SMOOTHING_STEPS), color=colour, linewidth=1.6, label=label)


def _smoothing_note(steps: list[int]) -> str:
    return (
        f" (thin; bold is a running mean over {SMOOTHING_STEPS} steps)" if len(steps) >= FEWEST_STEPS_TO_SMOOTH else ""
    )


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """The centred running mean. The window shrinks at both ends."""
    half = window // 2
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _ends(label: str, steps: Sequence[int], values: Sequence[float]) -> str:
    first, last = f"{values[0]:.3g} at step {steps[0]}", f"{values[-1]:.3g} at step {steps[-1]}"
    return f"{label} {first}, {last}." if len(steps) > 1 else f"{label} {first}."


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{i}: {value:.3g}" for i, value in enumerate(values) if not math.isnan(value))
