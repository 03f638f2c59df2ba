"""`tempflow score`: score image files in this process, without Ray."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.base.errors import UserError
from system.commands.arguments import console
from system.commands.plain import plain

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from services.scoring.settings import ScorerSettings
    from services.serving.settings import PoolSettings

MAX_PIXELS = 2**28

app = typer.Typer()


@app.command()
def score(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.")],
    prompt: Annotated[list[str], typer.Option(help="One prompt for all images, or one for each image in order.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose scorers are used.")] = "shapes",
    scorer: Annotated[list[str] | None, typer.Option(help="Use only this scorer; repeat the option for more.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Settings to change, such as scorers.0.options.device=cpu.")
    ] = None,
) -> None:
    """Score image files in this process, without Ray."""
    from system.recipe.load import load_pool

    console.print(run_score(images, prompt, chosen_scorers(load_pool(recipe, overrides or []), scorer)))


def chosen_scorers(pool: PoolSettings, names: Sequence[str] | None) -> list[ScorerSettings]:
    """A pool's scorers of these names; a name that it lacks is a built-in scorer or an import path, without options.

    Raises:
        UserError: a name is none of these, or the scorer's model is missing.
    """
    from services.scoring.scorer import check_scorer
    from services.scoring.settings import ScorerSettings

    by_name = {scorer.name: scorer for scorer in pool.scorers}
    chosen = [by_name.get(name) or ScorerSettings(name=_label(name), scorer=name) for name in names or by_name]
    for scorer in chosen:
        check_scorer(scorer)
    return chosen


def _label(scorer: str) -> str:
    """A name that a scorer may have, made from its import path."""
    from services.scoring.settings import COLUMNS

    label = re.sub(r"[^a-z0-9]+", "_", scorer.rpartition(":")[2].lower()).strip("_")
    return label if label[:1].isalpha() and label not in COLUMNS else f"scorer_{label}"


def run_score(images: Sequence[Path], prompts: Sequence[str], scorers: Sequence[ScorerSettings]) -> Table:
    """A table with a row per image and a column per scorer.

    Args:
        prompts: one for all images, or one for each.

    Raises:
        UserError: an image cannot be read, or the number of prompts does not fit.
    """
    import numpy as np
    from rich.table import Table

    from services.scoring.scorer import load_scorer

    if len(prompts) not in (1, len(images)):
        raise UserError(f"{len(prompts)} prompts for {len(images)} images: give one for all, or one each")
    texts = list(prompts) * (len(images) if len(prompts) == 1 else 1)
    pixels = [_read(path) for path in images]
    table = Table()
    table.add_column("image", overflow="fold")
    columns = []
    for settings in scorers:
        scorer = load_scorer(settings)
        table.add_column(settings.name, justify="right")
        columns.append([float(scorer(image[None], [text])[0]) for image, text in zip(pixels, texts, strict=True)])
    for path, *values in zip(images, *columns, strict=True):
        table.add_row(plain(path), *("–" if np.isnan(value) else f"{value:.4f}" for value in values))
    return table


def _read(path: Path) -> np.ndarray:
    from services.http.image_structure import BadImage
    from services.http.images import decode_image

    try:
        return decode_image(path.read_bytes(), MAX_PIXELS)
    except (OSError, BadImage) as error:
        raise UserError(f"`{path}`: {error}") from error
