"""gpu.html, one file without a network, and the same tables as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from services.base.storage import write_atomically
from system.bench.gpu.parts import PARTS
from system.bench.gpu.record import Cell, Findings, State, Table
from system.report.build import pages
from system.report.canvas import SERIES, Panel, draw

THROUGHPUT = "Throughput"
"""The table of the part `forward` that is also drawn."""


def write_page(results: Mapping[str, Findings], path: Path) -> None:
    """Write the HTML page of what has run so far."""
    environment = pages("system.bench.gpu")
    environment.filters |= {"cell": cell, "columns": columns}
    page = environment.get_template("gpu.html.j2").render(
        device=device_of(results),
        summary=summary(results),
        made_by=", ".join(sorted({one.made_by for one in results.values() if one.made_by})),
        small=any(one.small for one in results.values()),
        seconds=sum(one.seconds for one in results.values()),
        parts=PARTS,
        results=results,
        State=State,
        panels=[panel for one in results.values() for table in one.tables for panel in curves(table)],
    )
    write_atomically(path, page.encode())


def write_tables(results: Mapping[str, Findings], path: Path) -> None:
    """Write the tables as Markdown, under the device's name."""
    lines = [f"## {device_of(results)}", "", summary(results), ""]
    for name, one in results.items():
        lines += [f"### {PARTS[name].title}", ""]
        lines += [f"- {check.name}: {word(check.passed)}: {check.said}" for check in one.checks]
        lines += [""] if one.checks else []
        for table in one.tables:
            names = columns(table)
            lines += [f"{table.title}:", "", _line(names), f"|{'---|' * len(names)}"]
            lines += [_line([cell(row.get(key)) for key in names]) for row in table.rows]
            lines += [""]
        lines += [f"- {note}" for note in one.notes] + ([""] if one.notes else [])
    write_atomically(path, ("\n".join(lines).rstrip() + "\n").encode())


def _line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in cells)} |"


def device_of(results: Mapping[str, Findings]) -> str:
    """The device in words."""
    return next((one.device for one in results.values() if one.device != "unknown"), "an unknown device")


def summary(results: Mapping[str, Findings]) -> str:
    """One sentence: which parts passed, failed and are missing."""
    by_state = {
        "passed": [name for name, one in results.items() if one.state is State.PASSED],
        "failed": [name for name, one in results.items() if one.state is State.FAILED],
        "not run yet": [name for name in PARTS if name not in results],
    }
    return "; ".join(f"{state}: {', '.join(names)}" for state, names in by_state.items() if names).capitalize() + "."


def word(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def columns(table: Table) -> list[str]:
    """The names of all cells, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in table.rows for key in row))


def cell(value: Cell) -> str:
    """A cell's text: four digits, a dash where there is nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:,.4g}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.1e}"
        return text.replace("-", "−")
    return f"{value:,}" if isinstance(value, int) else str(value)


def curves(table: Table) -> list[Panel]:
    """NFE a second over latents in a forward, a line for each model, if the table has them."""
    rows = [row for row in table.rows if row.get("NFE/s") is not None]
    if not table.title.startswith(THROUGHPUT) or not rows:
        return []
    by_line: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        label = f"{row['model']} {row['dtype']} {row['work']}"
        by_line.setdefault(label, []).append((float(row["latents"] or 0), float(row["NFE/s"] or 0)))

    def plot(axis: Axes) -> None:
        for place, (label, points) in enumerate(by_line.items()):
            dash, colour = ("-", "--", ":")[place // len(SERIES) % 3], SERIES[place % len(SERIES)]
            axis.plot(*zip(*points, strict=True), dash, color=colour, marker="o", ms=3, label=label)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("latents in a forward")
        axis.set_ylabel("NFE/s")

    return [Panel("Throughput by size", "NFE a second over the latents in one forward.", "", draw("throughput", plot))]
