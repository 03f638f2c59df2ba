"""`tempflow score`: score image files in this process, without Ray."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.base.errors import UserError, first_line
from services.base.plain import plain
from system.commands.arguments import console, same, say_next

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from services.scoring.loaded import LoadedScorer
    from services.scoring.row import Row
    from services.scoring.settings import ScorerSettings
    from services.serving.settings import PoolSettings

MAX_PIXELS = 2**28
MAX_ROW_BYTES = 2**20

app = typer.Typer()


@app.command()
def score(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or WebP files.")],
    prompt: Annotated[list[str], typer.Option(help="One prompt for all images, or one for each image in order.")],
    row: Annotated[
        list[str] | None,
        typer.Option(help="The prompt's other columns as a JSON object: one for all images, or one for each."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="The recipe whose scorers are used.")] = "shapes",
    scorer: Annotated[list[str] | None, typer.Option(help="Use only this scorer; repeat the option for more.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Settings to change, such as scorers.0.options.device=cpu.")
    ] = None,
) -> None:
    """Score image files in this process, without Ray."""
    from system.recipe.load import load_pool

    pool = load_pool(recipe, overrides or [])
    chosen = chosen_scorers(pool, scorer)
    console.print(run_score(images, prompt, chosen, row or ["{}"]))
    added = [f"scorers.{one.name}={{scorer: {one.scorer}}}" for one in chosen if one not in pool.scorers]
    say_next(f"train on these scores: tempflow train {same(recipe, [*(overrides or []), *added])}")


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


def run_score(
    images: Sequence[Path], prompts: Sequence[str], scorers: Sequence[ScorerSettings], rows: Sequence[str] = ("{}",)
) -> Table:
    """A table with a row per image and a column per scorer and sub-score.

    A groupwise scorer compares all images of one prompt.

    Args:
        prompts: one for all images, or one for each.
        rows: the prompts' other columns as JSON: one for all images, or one for each.

    Raises:
        UserError: an image or row cannot be read, has no score for a known reason, or the number of prompts or rows
            does not fit.
    """
    import numpy as np
    from rich.table import Table

    from services.scoring.loaded import LoadedScorer

    texts, read = _one_each("prompts", prompts, images), [_read_row(row) for row in _one_each("rows", rows, images)]
    pixels = [_read(path) for path in images]
    columns: dict[str, np.ndarray] = {}
    for settings in scorers:
        scorer = LoadedScorer(settings)
        columns[settings.name] = np.full(len(images), np.nan)
        together = [[i] for i in range(len(images))]
        if scorer.needs.groupwise:
            together = [[i for i, text in enumerate(texts) if text == one] for one in dict.fromkeys(texts)]
        for places in together:
            for name, values in _scores(scorer, images, pixels, texts, read, places).items():
                columns.setdefault(name, np.full(len(images), np.nan))[places] = values
    table = Table()
    table.add_column("image", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    for path, *numbers in zip(images, *columns.values(), strict=True):
        table.add_row(plain(path), *("–" if np.isnan(number) else f"{number:.4f}" for number in numbers))
    return table


def _scores(
    scorer: LoadedScorer,
    images: Sequence[Path],
    pixels: Sequence[np.ndarray],
    texts: Sequence[str],
    rows: Sequence[Row],
    places: Sequence[int],
) -> dict[str, np.ndarray]:
    """The scores and sub-scores of the images at some places, by name."""
    import numpy as np

    from services.scoring.loaded import qualified

    name = scorer.settings.name
    if len({pixels[i].shape for i in places}) > 1:
        raise UserError(f"scorer `{name}` compares images of one prompt, which must have the same size; resize them")
    batch = np.stack([pixels[i] for i in places])
    scored = scorer.score(batch, [texts[i] for i in places], [rows[i] for i in places])
    if scored.errors:
        first, reason = min(scored.errors.items())
        raise UserError(f"scorer `{name}` cannot score `{images[places[first]]}`: {reason}; see --row")
    return {name: scored.score_N, **qualified(name, scored.sub_scores)}


def _one_each(what: str, given: Sequence[str], images: Sequence[Path]) -> list[str]:
    if len(given) not in (1, len(images)):
        raise UserError(f"{len(given)} {what} for {len(images)} images: give one for all, or one each")
    return list(given) * (len(images) if len(given) == 1 else 1)


def _read_row(text: str) -> Row:
    from services.scoring.row import BadRow, read_row

    try:
        return read_row(text.encode(), MAX_ROW_BYTES)
    except BadRow as error:
        raise UserError(f"--row `{text[:80]}`: {error}") from error


def _read(path: Path) -> np.ndarray:
    from services.http.image_structure import BadImage
    from services.http.images import decode_image

    try:
        return decode_image(path.read_bytes(), MAX_PIXELS)
    except OSError as error:
        raise UserError(
            f"`{path}` cannot be read ({first_line(error)}); correct its path or its permissions"
        ) from error
    except BadImage as error:
        raise UserError(f"`{path}`: {error}") from error
