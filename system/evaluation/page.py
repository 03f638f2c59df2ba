"""The page of an evaluation: one HTML file that needs no network, with images side by side and filters."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from services.base.storage import write_atomically
from system.evaluation.contenders import Contender
from system.evaluation.pictures import Pictures
from system.evaluation.run import Results
from system.evaluation.scores import lines
from system.loop.evaluation import Evaluation
from system.recipe.model import RunConfig
from system.report.build import brief, decimals, difference, interval, pages, score, verdict
from system.report.data import number


@dataclass(frozen=True)
class Column:
    """What one contender made of a prompt."""

    model: str
    uris: list[str]
    means: dict[str, float | None]
    """The mean score over the images that have one, by score; None if none has."""


@dataclass(frozen=True)
class PromptCard:
    """The images of one prompt, side by side."""

    set: str
    row: int
    prompt: str
    category: str
    columns: list[Column]

    @property
    def data(self) -> str:
        """What the filters read, as JSON: the mean scores by contender."""
        return json.dumps({column.model: column.means for column in self.columns})


def write_page(
    config: RunConfig, contenders: Sequence[Contender], results: Results, pictures: Pictures, output: Path
) -> None:
    """Write the page atomically."""
    environment = pages("system.evaluation")
    environment.filters |= {f.__name__: f for f in (score, brief, decimals, difference, interval, verdict)}
    first = next(iter(results.values()))
    script = files("system.evaluation").joinpath("filters.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    of_sets: dict[str, list] = {}
    for line in lines(results):
        of_sets.setdefault(line.set, []).append(line)
    categories = {
        name: sorted({category for category in one.table["category"].to_pylist() if category is not None})
        for name, one in first.items()
    }
    page = environment.get_template("page.html.j2").render(
        name=config.name,
        contenders=contenders,
        sampling=config.eval_sampling,
        seed=config.seed,
        lines=of_sets,
        sets={name: one.of for name, one in first.items()},
        categories=categories,
        scores=list(dict.fromkeys(name for one in first.values() for name in one.scores)),
        cards=[card for name in first for card in _cards(name, results, pictures)],
        small=pictures.small,
        script=script,
        script_hash=f"sha256-{digest}",
    )
    write_atomically(output, page.encode())


def _cards(name: str, results: Results, pictures: Pictures) -> Iterator[PromptCard]:
    """The cards of a set, in the order of its file."""
    any_one = next(iter(results.values()))[name]
    each, table = any_one.of.images_per_prompt, any_one.table
    prompts, categories = table["prompt"].to_pylist(), table["category"].to_pylist()
    values = {model: _columns(found[name]) for model, found in results.items()}
    for start in range(0, len(table), each):
        part = range(start, start + each)
        columns = [
            Column(
                model,
                [pictures.uri(model, name, i) for i in part],
                {score: _mean(column[start : start + each]) for score, column in values[model].items()},
            )
            for model in results
        ]
        yield PromptCard(name, start // each, prompts[start], categories[start] or "", columns)


def _columns(one: Evaluation) -> dict[str, list[float | None]]:
    return {name: [number(value) for value in one.table[name].to_pylist()] for name in one.scores}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
