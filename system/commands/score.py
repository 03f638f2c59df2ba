"""`tempflow score`: images scored in this process, without Ray."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from services.base.errors import UserError
from services.http.image_structure import BadImage
from services.http.images import decode_image
from services.scoring.scorer import check_scorer, load_scorer
from services.scoring.settings import COLUMNS, ScorerSettings
from services.serving.settings import PoolSettings
from system.commands.plain import plain

MAX_PIXELS = 2**28


def chosen_scorers(pool: PoolSettings, names: Sequence[str] | None) -> list[ScorerSettings]:
    """A pool's scorers of these names; a name that it lacks is a built-in scorer or an import path, with no options.

    Raises:
        UserError: neither, or a model that is not there.
    """
    by_name = {scorer.name: scorer for scorer in pool.scorers}
    chosen = [by_name.get(name) or ScorerSettings(name=_label(name), scorer=name) for name in names or by_name]
    for scorer in chosen:
        check_scorer(scorer)
    return chosen


def _label(scorer: str) -> str:
    """A name that a scorer may have, made of what it is."""
    label = re.sub(r"[^a-z0-9]+", "_", scorer.rpartition(":")[2].lower()).strip("_")
    return label if label[:1].isalpha() and label not in COLUMNS else f"scorer_{label}"


def run_score(images: Sequence[Path], prompts: Sequence[str], scorers: Sequence[ScorerSettings]) -> Table:
    """A row an image, a column a scorer.

    Args:
        prompts: one for all images, or one each.

    Raises:
        UserError: an image cannot be read, or the number of prompts does not fit.
    """
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
    try:
        return decode_image(path.read_bytes(), MAX_PIXELS)
    except (OSError, BadImage) as error:
        raise UserError(f"`{path}`: {error}") from error
