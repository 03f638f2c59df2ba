"""The figures that show whether the updates are sound."""

import math

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from system.report.canvas import BLUE, INK, ORANGE, Panel, draw, line, log_axis, training_axis
from system.report.data import Run
from system.report.figures.common import first_and_last, shares_panel


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
        shares_panel(run, shares, "Groups and actions without effect", "share", "shares",
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
    alt = " ".join(first_and_last(f"{label}:", *points) for label, points in series.items() if points[0])
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
    return Panel("Gradient norm", caption, first_and_last("Gradient norm:", steps, values), draw("gradient", plot))


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
