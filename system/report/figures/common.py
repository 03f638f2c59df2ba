"""What the figures of several sections share."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from system.report.canvas import SERIES, Panel, draw, line, training_axis
from system.report.data import Run


def shares_panel(
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


def first_and_last(label: str, steps: Sequence[int], values: Sequence[float]) -> str:
    """The first and the last point of a curve in words."""
    first, last = f"{values[0]:.3g} at step {steps[0]}", f"{values[-1]:.3g} at step {steps[-1]}"
    return f"{label} {first}, {last}." if len(steps) > 1 else f"{label} {first}."
