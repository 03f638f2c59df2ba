"""A run in the terminal: its state, its curves as sparklines, its roles and its warnings."""

from datetime import datetime
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.base.plain import plain, printable
from system.run.progress import minutes
from system.watch.reader import Reader

BARS = "▁▂▃▄▅▆▇█"
MIN_WIDTH, MAX_WIDTH = 10, 60
"""Characters of a sparkline."""
SHOWN_WARNINGS = 6
STATES = {
    "waiting": ("waiting for the first line", "dim"),
    "running": ("running", "green"),
    "finished": ("finished", "green"),
    "silent": ("no news: stopped, or a step that takes very long", "yellow"),
}


def sparkline(values: list[float], width: int) -> str:
    """Values as bars of eight heights between the smallest and the greatest; stretches of values as their means."""
    if not values:
        return ""
    count = min(width, len(values))
    ends = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
    low, high = min(means), max(means)
    if high == low:
        return BARS[3] * count
    return "".join(BARS[min(len(BARS) - 1, int((mean - low) / (high - low) * len(BARS)))] for mean in means)


def view(reader: Reader, now: float, width: int) -> RenderableType:
    """The whole screen.

    Args:
        now: the Unix time.
        width: characters of a line.
    """
    state = reader.state(now)
    said, style = STATES[state["kind"]]
    parts: list[RenderableType] = [
        Text.assemble((printable(reader.name), "bold"), "  ", (said, style)),
        _progress(state),
    ]
    chars = max(MIN_WIDTH, min(MAX_WIDTH, width - 56))
    curves = Table(box=None, padding=(0, 1), show_header=False)
    for justify in ("left", "left", "left", "right"):
        curves.add_column(justify=justify, no_wrap=True)
    for panel in reader.panels():
        for i, series in enumerate(panel["series"]):
            title = plain(panel["title"]) if i == 0 else Text()
            curves.add_row(
                title, plain(series["label"]), sparkline(series["values"], chars), f"{series['values'][-1]:.4g}"
            )
    parts.append(curves)
    if warned := reader.warnings[:SHOWN_WARNINGS]:
        parts.append(Text("warnings", style="bold"))
        for warning in warned:
            at = datetime.fromtimestamp(warning.time).strftime("%H:%M:%S")
            step = "" if warning.step is None else f" step {warning.step}"
            parts.append(Text(f"{at}{step}  {printable(warning.message)}", style="yellow"))
    return Group(*parts)


def _progress(state: dict) -> RenderableType:
    if state["step"] is None:
        return Text()
    row = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = [
        Text(f"step {state['step']:,}" + (f" of {state['steps']:,}" if state["steps"] else ""))
    ]
    if state["steps"]:
        cells.append(ProgressBar(total=state["steps"], completed=state["step"], width=24))
    if state["nfe"] is not None:
        cells.append(Text(f"{state['nfe']:,.0f} NFE", style="dim"))
    if state["left_s"] is not None:
        cells.append(Text(f"about {minutes(state['left_s'])} left", style="dim"))
    if state["age_s"] is not None and state["kind"] != "finished":
        cells.append(Text(f"last line {minutes(state['age_s'])} ago", style="dim"))
    row.add_row(*cells)
    return row
