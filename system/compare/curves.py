"""The figures of a comparison: every contender on one plot, and, if there are many, each on a small plot of its own.

Lines that end side by side are named at their ends, others in a legend. Contenders differ in colour, dash and marker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from system.report.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PNG_INCHES,
    PURPLE,
    RED,
    SIZE_INCHES,
    Panel,
    draw_figure,
    draw_figure_png,
    on_one_axis,
    style,
)

CROWDED = 6
"""From so many contenders on, each has a plot of its own."""
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED)
DASHES = ("-", "--", ":")
MARKERS = "os^DvPX<>ph*"
END_SHARE = 0.9
"""Lines end side by side if all of them reach this share of the longest."""
LABEL_POINTS = 10.0
"""The height of a label with the space around it."""
AXIS_SHARE = 0.8
"""The share of a figure's height that its axes have, about."""
LEADER = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
"""The line from a name's left side to the end of its curve."""
COLUMNS = 4
WIDE_INCHES, ROW_INCHES = (9.4, 3.8), 1.7
"""A figure as wide as the page, and the height of a row of small plots."""


@dataclass(frozen=True)
class Curve:
    """A contender's line over some cost."""

    contender: str
    x_P: np.ndarray
    y_SP: np.ndarray
    """One line for each seed S. Values may be NaN."""
    note: str = ""
    """A text that follows the name, such as the last value."""

    @property
    def name(self) -> str:
        return f"{self.contender} {self.note}".strip()

    @property
    def mean_P(self) -> np.ndarray:
        return self.y_SP.mean(0)


@dataclass(frozen=True)
class Look:
    """How a contender's line is drawn."""

    colour: str
    dash: str
    marker: str

    @classmethod
    def of(cls, place: int) -> Look:
        """The look of a contender, by its place in the list."""
        dash = DASHES[place // len(COLOURS) % len(DASHES)]
        return cls(COLOURS[place % len(COLOURS)], dash, MARKERS[place % len(MARKERS)])


@dataclass(frozen=True)
class Drawing:
    """What all plots of a panel share."""

    key: str
    """Unique in the page; the names of the PNGs begin with it."""
    title: str
    x: str
    y: str
    set_up: Callable[[Axes], None]
    """Sets the ticks and limits of an axis."""


def panels(drawing: Drawing, curves: Sequence[Curve], caption: str, alt: str, output: Path) -> list[Panel]:
    """The panels of some curves, and their PNGs in `output`: KEY.png, and KEY-each.png if there are two panels.

    Few contenders share a plot. Many have a plot each, and share one only if their lines end side by side.
    """
    crowded, side_by_side = len(curves) >= CROWDED, _side_by_side(curves)
    found = []
    if not crowded or side_by_side:
        size, png_size = (WIDE_INCHES, WIDE_INCHES) if crowded else (SIZE_INCHES, PNG_INCHES)
        band = "" if crowded or max(len(curve.y_SP) for curve in curves) < 2 else "; the band is all seeds"

        def paint_on(height: float) -> Callable[[Figure], None]:
            return on_one_axis(lambda axis: _together(axis, drawing, curves, side_by_side, not crowded, height))

        draw_figure_png(output / f"{drawing.key}.png", paint_on(png_size[1]), png_size)
        svg = draw_figure(drawing.key, paint_on(size[1]), size)
        found.append(Panel(drawing.title, f"{caption}{band}.", alt, svg, crowded))
    if crowded:
        key = f"{drawing.key}-each" if found else drawing.key
        size = (WIDE_INCHES[0], ROW_INCHES * -(-len(curves) // COLUMNS) + 0.3)

        def paint(figure: Figure) -> None:
            _each(figure, drawing, curves)

        draw_figure_png(output / f"{key}.png", paint, size)
        text = f"{caption}, one plot for each contender; the band is all of its seeds, and the others' means are grey."
        title = f"{drawing.title}, each contender" if found else drawing.title
        found.append(Panel(title, text, alt, draw_figure(key, paint, size), True))
    return found


def _side_by_side(curves: Sequence[Curve]) -> bool:
    ends = [curve.x_P[-1] if len(curve.x_P) else 0.0 for curve in curves]
    return min(ends) >= END_SHARE * max(ends) > 0


def _line(axis: Axes, curve: Curve, look: Look, label: str | None, band: bool) -> None:
    if band and len(curve.y_SP) > 1:
        low_P, high_P = curve.y_SP.min(0), curve.y_SP.max(0)
        axis.fill_between(curve.x_P, low_P, high_P, color=look.colour, alpha=0.12, linewidth=0)
    axis.plot(
        curve.x_P, curve.mean_P, look.dash, color=look.colour, linewidth=1.4, marker=look.marker, ms=3.5, label=label
    )


def _together(
    axis: Axes, drawing: Drawing, curves: Sequence[Curve], named_at_ends: bool, bands: bool, height: float
) -> None:
    """All curves on one axis of a figure of this height, in inches."""
    for place, curve in enumerate(curves):
        _line(axis, curve, Look.of(place), None if named_at_ends else curve.name, bands)
    axis.set_xlabel(drawing.x)
    axis.set_ylabel(drawing.y)
    drawing.set_up(axis)
    if named_at_ends:
        _name_ends(axis, curves, LABEL_POINTS / (AXIS_SHARE * height * 72))


def _name_ends(axis: Axes, curves: Sequence[Curve], gap: float) -> None:
    """Write each curve's name beside its end, at least `gap` of the axis apart, with a thin line to the end."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    ends = np.array([curve.mean_P[-1] for curve in curves])
    places = spread_out((np.nan_to_num(ends, nan=low) - low) / (high - low), gap)
    for place, curve in enumerate(curves):
        colour = Look.of(place).colour
        axis.annotate(
            curve.name,
            xy=(curve.x_P[-1], ends[place]),
            xytext=(1.03, places[place]),
            textcoords="axes fraction",
            va="center",
            color=colour,
            annotation_clip=False,
            arrowprops=LEADER | {"color": colour},
        )


def spread_out(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Places in [0, 1] at least `gap` apart, in the order of the wanted ones and as near to them as squares can tell.

    With i the rank, place − i·gap must not fall: an isotonic regression, solved by pooling neighbours that do.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    pools: list[list[float]] = []
    for value in wanted[order] - steps:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            fallen = pools.pop()
            pools[-1] += fallen
    pooled = np.concatenate([[np.mean(pool)] * len(pool) for pool in pools])
    places = np.empty(len(wanted))
    places[order] = np.clip(pooled, 0, max(0.0, 1 - steps[-1])) + steps
    return places


def _each(figure: Figure, drawing: Drawing, curves: Sequence[Curve]) -> None:
    """A small plot for each curve, with the others in grey behind it."""
    rows = -(-len(curves) // COLUMNS)
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for place, axis in enumerate(grid.flat):
        if place >= len(curves):
            axis.set_visible(False)
            continue
        style(axis)
        _faint(axis, [*curves[:place], *curves[place + 1 :]])
        _line(axis, curves[place], Look.of(place), None, band=True)
        axis.set_title(curves[place].name, loc="left", fontsize=8, color=INK)
        axis.tick_params(labelbottom=place + COLUMNS >= len(curves))
        drawing.set_up(axis)
    figure.supxlabel(drawing.x, fontsize=8, color=INK)
    figure.supylabel(drawing.y, fontsize=8, color=INK)


def _faint(axis: Axes, curves: Sequence[Curve]) -> None:
    """Draw curves in grey, as one line with gaps; those of one point as dots."""
    lines = [curve for curve in curves if len(curve.x_P) > 1]
    dots = [curve for curve in curves if len(curve.x_P) == 1]
    if lines:
        x = np.concatenate([[*curve.x_P, np.nan] for curve in lines])
        y = np.concatenate([[*curve.mean_P, np.nan] for curve in lines])
        axis.plot(x, y, color=GREY, linewidth=0.8, alpha=0.4, zorder=1)
    axis.scatter([c.x_P[0] for c in dots], [c.mean_P[0] for c in dots], s=8, color=GREY, alpha=0.4, zorder=1)
