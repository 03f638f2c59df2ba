"""Draws before_after.png: the first held-out prompts of a run, and whether the judge accepts each image.

    tempflow train shapes
    python -m docs.before_after runs/shapes

The judge is a set of pixel rules (system/miniature/judge.py). Its verdict on each image is in the run's evaluations.
"""

import io
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from services.base.errors import UserError
from system.report.canvas import GREEN, INK, RED, SETTINGS
from system.report.data import read_run
from system.report.pictures import BeforeAfter, Picture, before_after

PICTURE = Path(__file__).parent / "before_after.png"
JUDGE = "judge"
COLUMNS, DPI = 8, 120
PROMPT_CHARACTERS = 19
"""Characters of a line of a prompt."""


def draw(path: Path, prompts: Sequence[BeforeAfter]) -> None:
    """Save the pictures of the prompts, those before above those after, each with the judge's verdict.

    Raises:
        UserError: a prompt lacks the pictures of two evaluations, or a verdict.
    """
    blocks = [prompts[i : i + COLUMNS] for i in range(0, len(prompts), COLUMNS)]
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(9.4, 2.9 * len(blocks)), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(2 * len(blocks), COLUMNS, squeeze=False)
        for axis in grid.flat:
            axis.set_axis_off()
        for block, rows in zip(blocks, zip(grid[::2], grid[1::2], strict=True), strict=True):
            for shown, before, after in zip(block, *rows, strict=False):
                if len(shown.pictures) != 2:
                    raise UserError(f"`{shown.prompt}` has no pictures of two evaluations; wait for the end of the run")
                for axis, picture in zip((before, after), shown.pictures, strict=True):
                    _show(axis, picture)
                lines = "\n".join(textwrap.wrap(shown.prompt, PROMPT_CHARACTERS))
                after.set_xlabel(lines, loc="left", fontsize=7)
            for axis, title in zip((rows[0][0], rows[1][0]), ("before", "after"), strict=True):
                axis.text(-0.1, 0.5, title, transform=axis.transAxes, ha="right", va="center", rotation=90, color=INK)
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def is_right(picture: Picture) -> bool:
    """Whether the judge accepts the image.

    Raises:
        UserError: it has no verdict.
    """
    verdict = picture.scores.get(JUDGE)
    if verdict is None:
        raise UserError(f"an image of step {picture.step} has no score `{JUDGE}`; give a run of the recipe `shapes`")
    return verdict == 1


def _show(axis: Axes, picture: Picture) -> None:
    """The image in a frame, with a green tick if it is right and a red cross if it is wrong."""
    colour, mark = (GREEN, "✓") if is_right(picture) else (RED, "✗")
    with Image.open(io.BytesIO(picture.content)) as image:
        axis.imshow(image.convert("RGB"))
    axis.set_axis_on()
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(1.6)
    box = {"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "white", "linewidth": 0.8}
    axis.text(0.94, 0.94, mark, transform=axis.transAxes, ha="right", va="top", color="white", fontsize=8, bbox=box)


def main() -> None:
    run = read_run(Path(sys.argv[1]))
    prompts, _ = before_after(run)
    draw(PICTURE, prompts)
    for place, when in enumerate(("before", "after")):
        print(f"{when}: {sum(is_right(shown.pictures[place]) for shown in prompts)} of {len(prompts)} are right")


if __name__ == "__main__":
    main()
