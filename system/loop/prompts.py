"""The prompts of a run, and the order in which it takes them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from actors.trajectory import Task
from services.base.errors import UserError
from services.base.rows import FileRows, read_rows
from services.scoring.row import BadRow, Row, checked_row
from services.scoring.scorer import needs_of, row_check
from services.scoring.settings import ScorerSettings
from system.recipe.model import DataSettings, RunConfig

CHECKED_ROWS = 10_000
"""The most rows of a file that are checked before a run."""


@dataclass(frozen=True)
class Prompts:
    """A file of prompts; the row number is the prompt's address."""

    texts: Sequence[str]
    categories: Sequence[str | None] | None
    rows: FileRows
    column: str
    """The name of the column with the prompts."""

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> str:
        return self.texts[int(row)]

    def category(self, row: int) -> str | None:
        return None if self.categories is None else self.categories[int(row)]

    def row(self, row: int) -> Row:
        """The other columns of a prompt's row, the category among them. NaN and infinity are None.

        Raises:
            UserError: lists and mappings in the row are too deep.
        """
        try:
            return checked_row({name: value for name, value in self.rows[int(row)].items() if name != self.column})
        except BadRow as error:
            raise UserError(f"the prompt in {self.rows.place(int(row))}: {error}; flatten it") from error


def read_prompts(
    name: str, prompt_column: str = "prompt", category_column: str = "category", section: str = "data"
) -> Prompts:
    """Read a file of prompts, of any kind that `read_rows` reads.

    Args:
        section: the section of the recipe that names the column, for the message.

    Raises:
        UserError: it is missing, unreadable, empty, without the column, or has a row without a prompt.
    """
    rows = read_rows(name, "prompt file", prompt_column)
    if not len(rows):
        raise UserError(f"`{name}` is empty; write one prompt in each row")
    if prompt_column not in rows.columns:
        raise UserError(
            f"`{name}` has no column `{prompt_column}`; set {section}.prompt_column to one of {rows.columns}"
        )
    categories = rows.categories(category_column) if category_column in rows.columns else None
    return Prompts(rows.texts(prompt_column), categories, rows, prompt_column)


def prompts_of(data: DataSettings, file: str) -> Prompts:
    """Read a file of prompts by the columns that a recipe names.

    Raises:
        UserError: as `read_prompts`.
    """
    return read_prompts(file, data.prompt_column, data.category_column)


def rows_for(scorers: Iterable[ScorerSettings], prompts: Prompts, rows: Iterable[int]) -> list[Row]:
    """The rows of some prompts if one of the scorers reads rows, else none.

    Raises:
        UserError: as `Prompts.row` raises.
    """
    return [prompts.row(row) for row in rows] if any(needs_of(scorer).rows for scorer in scorers) else []


def check_rows(file: str, prompts: Prompts, scorers: Iterable[ScorerSettings]) -> None:
    """Check the first rows of a file for the scorers that read rows. A row without a value in a column is a hole later.

    Raises:
        UserError: a column that a scorer needs is missing, or a scorer cannot use a row.
    """
    for scorer in scorers:
        if not (needs := needs_of(scorer)).rows:
            continue
        if missing := [column for column in needs.columns if column not in prompts.rows.columns]:
            raise UserError(
                f"scorer `{scorer.name}` reads the column `{missing[0]}`, which `{file}` does not have; add the "
                "column, or leave out the scorer"
            )
        fault_of_row = row_check(scorer)
        for i in range(min(len(prompts), CHECKED_ROWS)):
            row = prompts.row(i)
            whole = all(row.get(column) is not None for column in needs.columns)
            if whole and (fault := fault_of_row(row)) is not None:
                place = f"`{file}`, {prompts.rows.place(i)}"
                raise UserError(f"scorer `{scorer.name}` cannot use {place}: the row {fault}; correct it")


def check_categories(file: str, prompts: Prompts, config: RunConfig) -> None:
    """Check that a training file has the categories that the scorers' weights name, and that each has a reward.

    Raises:
        UserError: a category is missing, or no scorer has a weight for it.
    """
    named = {category: scorer.name for scorer in config.scorers for category in scorer.category_weights}
    if not named:
        return
    if prompts.categories is None:
        raise UserError(
            f"scorer `{next(iter(named.values()))}` has category_weights, and `{file}` has no column "
            f"`{config.data.category_column}`; set data.category_column to one of {prompts.rows.columns}"
        )
    present = dict.fromkeys(prompts.categories)
    if missing := [category for category in named if category not in present]:
        known = ", ".join(f"`{category}`" for category in present if category is not None)
        raise UserError(
            f"scorer `{named[missing[0]]}` has a weight for the category `{missing[0]}`, which `{file}` does not have; "
            f"it has {known}"
        )
    for category in present:
        if not any(scorer.weight_in(category) for scorer in config.scorers):
            prompts_of_it = "prompts without a category" if category is None else f"the category `{category}`"
            raise UserError(f"`{file}` has {prompts_of_it}, for which no scorer has a weight; give one a weight")


def rows_of_step(count: int, per_step: int, step: int, seed: int) -> list[int]:
    """The prompt rows of a training step: a pure function of seed and step, each row once an epoch.

    An epoch is a permutation of its own; a step never spans two of them, so no step holds a prompt twice.

    Raises:
        UserError: fewer prompts than a step takes.
    """
    if count < per_step:
        raise UserError(
            f"data.prompts_per_step is {per_step} but there are only {count} prompts; lower it, or add prompts"
        )
    steps_per_epoch = count // per_step
    epoch, place = divmod(step, steps_per_epoch)
    return _order(count, seed, epoch)[place * per_step : (place + 1) * per_step].tolist()


@lru_cache(maxsize=1)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)


def tasks_of_step(prompts: Prompts, per_step: int, step: int, seed: int, version: int) -> list[Task]:
    """The tasks of a training step, to be generated by policy `version`."""
    rows = rows_of_step(len(prompts), per_step, step, seed)
    return [Task(i, prompts[row], (seed, step, row), version) for i, row in enumerate(rows)]
