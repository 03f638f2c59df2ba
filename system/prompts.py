"""Prompts from Parquet, text or JSON lines, and the order in which a run takes them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.errors import UserError
from services.paths import resolve_model


@dataclass(frozen=True)
class Prompts:
    """A file of prompts; the row number is the prompt's address."""

    texts: pa.ChunkedArray | pa.Array
    categories: pa.ChunkedArray | pa.Array | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> str:
        return self.texts[int(row)].as_py()

    def category(self, row: int) -> str | None:
        return None if self.categories is None else self.categories[int(row)].as_py()


def read_prompts(name: str, prompt_column: str = "prompt", category_column: str = "category") -> Prompts:
    """Read a prompt file by its suffix: .parquet, .jsonl, or text with a prompt a line.

    Raises:
        UserError: missing, unreadable, without the column, or empty.
    """
    path = Path(resolve_model(name)).expanduser()
    if not path.is_file():
        raise UserError(f"no prompt file at `{name}`")
    if path.suffix == ".parquet":
        table = _parquet(path)
    elif path.suffix == ".jsonl":
        table = _json_lines(path)
    else:
        lines = [line.strip() for line in path.read_text().splitlines()]
        table = pa.table({prompt_column: pa.array([line for line in lines if line], pa.string())})
    if prompt_column not in table.column_names:
        raise UserError(
            f"`{name}` has no column `{prompt_column}`; set data.prompt_column to one of {table.column_names}"
        )
    texts = table[prompt_column]
    if not pa.types.is_string(texts.type) and not pa.types.is_large_string(texts.type):
        raise UserError(f"`{name}`: column `{prompt_column}` holds {texts.type}, not text")
    if texts.null_count or not len(texts):
        raise UserError(f"`{name}`: column `{prompt_column}` {'has empty rows' if len(texts) else 'is empty'}")
    return Prompts(texts, table[category_column] if category_column in table.column_names else None)


def _parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"`{path}` is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def _json_lines(path: Path) -> pa.Table:
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"`{path}`, line {number}: not JSON: {error.msg}") from error
    return pa.Table.from_pylist(rows)


def rows_of_step(count: int, per_step: int, step: int, seed: int) -> list[int]:
    """The prompt rows of a training step: a pure function of seed and step, each row once an epoch.

    An epoch is a permutation of its own; a step never spans two of them, so no step holds a prompt twice.

    Raises:
        UserError: fewer prompts than a step takes.
    """
    if count < per_step:
        raise UserError(f"data.prompts_per_step is {per_step} but there are only {count} prompts")
    steps_per_epoch = count // per_step
    epoch, place = divmod(step, steps_per_epoch)
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
    return order[place * per_step : (place + 1) * per_step].tolist()
