"""Draws pictures/combining.png: what each rule of `reward.combine` does to two rewards whose scales are 1:100.

    python -m docs.combining

It trains the miniature with each rule in this process, without Ray: three short runs in runs/combining_RULE. A run that
is there already is continued, or used as it is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from actors.reward.settings import CombineRule
from system.recipe.load import load_config
from system.report.canvas import BLUE, GREEN, ORANGE, PNG_DPI, SETTINGS, style, training_axis
from system.report.data import Run, read_run
from system.training import train_run

PICTURE = Path(__file__).parent / "pictures" / "combining.png"
RULES: Sequence[CombineRule] = get_args(CombineRule)
COLOURS = dict(zip(RULES, (ORANGE, BLUE, GREEN), strict=True))
SMALL, LARGE = "pickscore", "compact"
"""Within a group, both scores vary by about 0.1 here. The scale of the second one makes that 10."""
RECIPE = [
    "steps=16",
    "eval.every=4",
    "learner.threads=1",
    "eval.prompts=60",
    "data.prompts_per_step=2",
    "plan.seeds=2",
    "learner.lr=2.0e-3",
    "advantage.epsilon=1.0e-4",
    f"scorers=[{{name: {SMALL}, scorer: pickscore, options: {{model: 'package:system.miniature/assets/reward'}}}}, "
    f"{{name: {LARGE}, scorer: jpeg_size, scale: 100, options: {{sign: -1}}}}]",
]


def trained(rule: CombineRule) -> Run:
    """The run of a rule."""
    config = load_config("shapes", [*RECIPE, f"name=combining_{rule}", f"reward.combine={rule}"])
    folder = Path(config.output) / config.name
    train_run(config, resume=folder.exists(), console=Console(), local=True)
    return read_run(folder)


def shares(runs: dict[str, Run]) -> Callable[[Axes], None]:
    """Draws each reward's mean share of the advantage, by rule."""

    def plot(axis: Axes) -> None:
        small = [float(np.mean(run.series(f"reward/{SMALL}/share")[1])) for run in runs.values()]
        bars = (SMALL, small, 0.9), (f"{LARGE} × 100", [1 - share for share in small], 0.35)
        left = np.zeros(len(runs))
        for label, share, alpha in bars:
            axis.barh(list(runs), share, 0.6, left, color=[COLOURS[rule] for rule in runs], alpha=alpha)
            for place, (start, value) in enumerate(zip(left, share, strict=True)):
                text = f"{label} {value:.0%}" if value > 0.2 else ""
                axis.text(start + value / 2, place, text, ha="center", va="center")
            left = left + share
        axis.invert_yaxis()
        axis.grid(visible=False)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_xlabel("share of the advantage, mean over the steps")

    return plot


def held_out(runs: dict[str, Run], name: str, label: str) -> Callable[[Axes], None]:
    """Draws a scorer's held-out mean over training, by rule."""

    def plot(axis: Axes) -> None:
        for rule, run in runs.items():
            axis.plot(*run.series(f"eval/{name}"), "o-", color=COLOURS[rule], linewidth=1.5, ms=3.5, label=rule)
        training_axis(axis, label)
        axis.legend(frameon=False)

    return plot


def draw(path: Path, runs: dict[str, Run]) -> None:
    """Save the figure as a PNG."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        plots = [
            shares(runs),
            held_out(runs, SMALL, f"{SMALL}, held out"),
            held_out(runs, LARGE, f"{LARGE} (−kB as a JPEG), held out"),
        ]
        for axis, plot in zip(figure.subplots(1, len(plots)), plots, strict=True):
            style(axis)
            plot(axis)
        figure.savefig(path, format="png", dpi=PNG_DPI, metadata={"Software": None})


if __name__ == "__main__":
    draw(PICTURE, {rule: trained(rule) for rule in RULES})
