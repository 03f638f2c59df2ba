"""Draws a figure as inline SVG. Its text stays text, and it uses the page's colours, so it follows light and dark."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

SIZE_INCHES = (4.6, 2.85)
PNG_INCHES, PNG_DPI = (6.4, 4.0), 160
SETTINGS: dict[Any, Any] = {
    "font.size": 8,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
}
INK, GRID = "#5d646d", "#e4e5e7"
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#2f6ea8", "#c4681f", "#2f8a63", "#8659b0", "#b23f48", "#8b9199"
STEP_ANCHOR = "images-of-step-"
"""The id of the images of a step in the page, before its number."""
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
VARIABLES = {
    INK: "soft",
    GRID: "line",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    RED: "red",
    GREY: "grey",
}
"""The style sheet's variable that replaces each colour. The colour itself stays as the fallback."""
LEGEND_CHARACTERS = 44
"""If all labels together are at most this long, the legend has four in a row, otherwise three."""
MARKED_POINTS = 30
"""Lines with at most this many points also mark each point, since a line of one point is invisible."""


@dataclass(frozen=True)
class Panel:
    """A figure with its texts. Without an SVG, the caption says what is missing."""

    title: str
    caption: str
    alt: str = ""
    svg: Markup | None = None
    wide: bool = False
    """Whether the figure takes the width of the page."""


def draw(key: str, plot: Callable[[Axes], None]) -> Markup:
    """The SVG of what `plot` draws, with one legend over it.

    Args:
        key: unique in the page; makes the SVG's ids unique and its bytes reproducible.
    """
    return draw_figure(key, on_one_axis(plot), SIZE_INCHES)


def draw_png(path: Path, plot: Callable[[Axes], None]) -> None:
    """Save what `plot` draws as a PNG on white, for documents."""
    draw_figure_png(path, on_one_axis(plot), PNG_INCHES)


def draw_figure(key: str, paint: Callable[[Figure], None], size: tuple[float, float]) -> Markup:
    """As `draw`, for a figure that `paint` makes as it likes.

    Args:
        size: in inches.
    """
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": key}):
        figure = _figure(paint, size)
        figure.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Markup(_adapt(buffer.getvalue(), key))


def draw_figure_png(path: Path, paint: Callable[[Figure], None], size: tuple[float, float]) -> None:
    """As `draw_png`, for a figure that `paint` makes as it likes."""
    with mpl.rc_context(SETTINGS):
        _figure(paint, size).savefig(path, format="png", dpi=PNG_DPI, metadata={"Software": None})


def _figure(paint: Callable[[Figure], None], size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    paint(figure)
    return figure


def on_one_axis(plot: Callable[[Axes], None]) -> Callable[[Figure], None]:
    """Paints what `plot` draws on one axis, with a legend over it."""

    def paint(figure: Figure) -> None:
        axis = figure.subplots()
        style(axis)
        plot(axis)
        _legend(figure)

    return paint


def style(axis: Axes, sides: Sequence[str] = ("left", "bottom")) -> None:
    """Style axes: few lines, no background."""
    axis.patch.set_alpha(0)
    axis.tick_params(colors=INK, length=3)
    axis.grid(color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in sides)
        spine.set_color(INK)
        spine.set_linewidth(0.7)
    for label in (axis.xaxis.label, axis.yaxis.label, axis.yaxis.get_offset_text()):
        label.set_color(INK)


def second_axis(axis: Axes, label: str) -> Axes:
    """A second y axis on the right with the same x axis."""
    twin = axis.twinx()
    style(twin, ("right",))
    twin.grid(visible=False)
    twin.set_ylabel(label)
    return twin


def training_axis(axis: Axes, y: str) -> None:
    """Label the axes: whole training steps along x, and y with its unit."""
    low, high = axis.get_xlim()
    if high - low < 1:
        step = round((low + high) / 2)
        axis.set_xlim(step - 0.5, step + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_xlabel("training step")
    axis.set_ylabel(y)


def cost_axis(axis: Axes, steps: Sequence[int], nfe: Sequence[float]) -> None:
    """Show the NFE spent at the marked training steps along the top."""
    if len(steps) < 2 or nfe[-1] <= nfe[0]:
        return
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if max(low, steps[0]) <= tick <= min(high, steps[-1])]
    top = axis.twiny()
    style(top, ())
    top.grid(visible=False)
    top.tick_params(length=0)
    top.set_xlim(low, high)
    top.set_xticks(ticks, [short(np.interp(tick, steps, nfe)) for tick in ticks])
    top.set_xlabel("NFE of training so far")


def line(
    axis: Axes, steps: Sequence[int], values: Sequence[float], colour: str, label: str, dashed: bool = False
) -> None:
    """Draw a line over training steps. If it has few points, they are marked."""
    marker = "o" if len(steps) <= MARKED_POINTS else None
    axis.plot(
        steps, values, linestyle="--" if dashed else "-", color=colour, linewidth=1.3, marker=marker, ms=3, label=label
    )


def link_steps(axis: Axes, steps: Sequence[int], values: Sequence[float], colour: str) -> None:
    """Mark steps with rings that lead to the images of the step in the page."""
    rings = axis.scatter(
        steps, values, s=40, facecolors=[(0, 0, 0, 0)] * len(steps), edgecolors=colour, linewidths=1, zorder=4
    )
    rings.set_urls([f"#{STEP_ANCHOR}{step}" for step in steps])


def log_axis(axis: Axes, values: Sequence[float]) -> None:
    """Make y logarithmic, over the whole decades that contain all values, which must be positive."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    axis.set_yscale("log")
    axis.set_ylim(10.0**low, 10.0 ** max(high, low + 1))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(round(math.log10(value)))))
    axis.yaxis.set_minor_formatter(NullFormatter())


def power_of_ten(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def short(value: float) -> str:
    """A count in at most four characters: 950, 12k, 3.4M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}" if value < 10 * size else f"{value / size:.0f}{unit}"
    return f"{value:.0f}"


def _legend(figure: Figure) -> None:
    found = [axis.get_legend_handles_labels() for axis in figure.axes]
    entries = [entry for handles, labels in found for entry in zip(handles, labels, strict=True)]
    entries.sort(key=lambda entry: isinstance(entry[0], Line2D))
    columns = 4 if sum(len(label) for _, label in entries) <= LEGEND_CHARACTERS else 3
    by_row = [entry for column in range(columns) for entry in entries[column::columns]]
    handles, labels = [handle for handle, _ in by_row], [label for _, label in by_row]
    if len(handles) > 1:
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=columns,
            frameon=False,
            labelcolor=INK,
            handlelength=1.6,
            columnspacing=1.4,
            borderaxespad=0.2,
        )


def _adapt(svg: str, key: str) -> str:
    """Remove the XML prologue, make ids unique in the page, and replace colours with variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="([^"]+)"', rf' id="{key}-\1"', svg)
    svg = re.sub(rf'(href="|url\()#(?!{STEP_ANCHOR})', rf"\1#{key}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    return svg
