"""The scores of all contenders: one table of images, and the means with their paired differences from the first one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from system.evaluation.run import Results
from system.report.data import PairedScore, compared


@dataclass(frozen=True)
class Line:
    """One contender's mean of one score."""

    set: str
    score: str
    """The scorer, or a sub-score as SCORER.SUB."""
    category: str | None
    """None for all prompts of the set."""
    model: str
    mean: float
    prompts: int
    """The prompts that the mean is over, those with an image that has a score."""
    pair: PairedScore | None
    """Compared with the first contender; None for the first contender itself."""


def lines(results: Results) -> Iterator[Line]:
    """All means, by set, score and category, in the order of the contenders."""
    first, *_ = results
    for name, base in results[first].items():
        tables = {model: found[name].table for model, found in results.items()}
        scores = [score for score in base.scores if all(score in table.column_names for table in tables.values())]
        alone = {model: compared(table, table, scores) for model, table in tables.items()}
        paired = {model: compared(base.table, table, scores) for model, table in tables.items() if model != first}
        for i, of in enumerate(alone[first]):
            for model, means in alone.items():
                pair = paired[model][i] if model in paired else None
                yield Line(name, of.name, of.category, model, means[i].before, means[i].pairs, pair)


def table_of(results: Results) -> pa.Table:
    """One row for each image: columns set, model, row, image, prompt, category, and one for each score."""
    parts = []
    for model, found in results.items():
        for name, one in found.items():
            count = len(one.table)
            table = one.table.add_column(0, "model", pa.array([model] * count, pa.string()))
            parts.append(table.add_column(0, "set", pa.array([name] * count, pa.string())))
    return pa.concat_tables(parts, promote_options="default")
