"""Reads a run folder for the report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.base.errors import UserError, first_line
from services.base.yaml_text import load_yaml
from system.compare.student import half_interval
from system.loop.evaluation import NOT_SCORES, mean_by_prompt
from system.recipe.evaluation import DEFAULT_SET
from system.run.files import eval_folders, tables
from system.run.metrics_file import MetricsFile, missing_steps

NEEDED = {"row", "prompt", "category"}
"""The columns that the table of an evaluation must have."""
UNREADABLE = (OSError, ValueError, pa.ArrowException)
"""Errors that reading a torn Parquet file raises."""


@dataclass(frozen=True)
class PairedScore:
    """A score before and after training on the same prompts and noise. A pair with a hole is dropped."""

    name: str
    category: str | None
    before: float
    after: float
    difference: float
    half_interval: float
    """Half of Student's 95% interval of the mean difference; NaN for fewer than two pairs."""
    pairs: int
    """The number of prompts."""


@dataclass(frozen=True)
class Run:
    """The content of a run folder."""

    path: Path
    config: dict[str, Any]
    config_text: str
    lines: list[dict[str, Any]]
    """The lines of metrics.jsonl in the order of their steps, one per step."""
    evals: dict[int, pa.Table]
    """The table of each evaluation of data.heldout, by step."""
    sets: dict[str, dict[int, pa.Table]]
    """The table of each evaluation of a set in eval.sets, by the set's name and then by step."""
    left_out: list[str]
    """One sentence for each part that is missing or cannot be read."""

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of training steps."""
        return [line for line in self.lines if line["step"] > 0]

    @property
    def warnings(self) -> list[str]:
        """The warnings of all steps, in order."""
        said = [line.get("warnings") for line in self.lines]
        return [str(sentence) for sentences in said if isinstance(sentences, list) for sentence in sentences]

    @property
    def weights(self) -> dict[str, float]:
        """As `weights_of` the recipe."""
        return weights_of(self.config)

    @property
    def roles(self) -> dict[str, str]:
        """What each scorer is for: `training reward`, `gate of a reward` or `not trained on`."""
        gates = [entry.get("gate") for entry in _scorers(self.config) if _weight(entry)]
        opens = {str(gate["score"]).partition(".")[0] for gate in gates if isinstance(gate, dict) and "score" in gate}
        return {
            name: "training reward" if weight else "gate of a reward" if name in opens else "not trained on"
            for name, weight in self.weights.items()
        }

    @property
    def scorers(self) -> list[str]:
        """The scorers of the held-out evaluation: first the recipe's in its order, then any others."""
        if self.evals:
            return self.scorers_of(self.evals)
        keys = {key for line in self.lines for key in line}
        return self._in_order({key.split("/")[1] for key in keys if key.startswith("eval/")})

    def scorers_of(self, evals: Mapping[int, pa.Table]) -> list[str]:
        """The scorers of all evaluations of a set, in the order of `scorers`."""
        columns = [set(table.column_names) for table in evals.values()]
        return self._in_order(set.intersection(*columns) - {*NOT_SCORES}) if columns else []

    def _in_order(self, known: set[str]) -> list[str]:
        return [name for name in self.weights if name in known] + sorted(known - set(self.weights))

    @property
    def all_sets(self) -> dict[str, dict[int, pa.Table]]:
        """The evaluations of data.heldout and of the sets in eval.sets, by name and step, without those of none."""
        every = {DEFAULT_SET: self.evals, **self.sets}
        return {name: evals for name, evals in every.items() if evals}

    def section(self, key: str) -> dict[str, Any]:
        """A section of the recipe; empty if it is missing."""
        return section_of(self.config, key)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """The steps and values of a scalar key at the steps where it is a finite number."""
        points = [(line["step"], number(line.get(key))) for line in self.lines]
        known = [(step, value) for step, value in points if value is not None]
        return [step for step, _ in known], [value for _, value in known]

    def last(self, key: str) -> float | None:
        """The latest value of a scalar key; None if it has none."""
        values = self.series(key)[1]
        return values[-1] if values else None


def section_of(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A section of a recipe that is read as plain data; empty if it is missing."""
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def weights_of(config: dict[str, Any]) -> dict[str, float]:
    """The weight of each scorer in the training reward, or its first weight in a category if that is 0."""
    return {str(entry["name"]): _weight(entry) for entry in _scorers(config)}


def _scorers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe's scorers that have a name."""
    listed = config.get("scorers")
    return [one for one in listed if isinstance(one, dict) and "name" in one] if isinstance(listed, list) else []


def _weight(scorer: dict[str, Any]) -> float:
    """A scorer's weight, or if that is 0 its first weight in a category that is not."""
    by_category = scorer.get("category_weights")
    weights = [scorer.get("weight"), *(by_category.values() if isinstance(by_category, dict) else [])]
    return next((known for weight in weights if (known := number(weight))), 0.0)


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def change_of(scores: Sequence[float | None]) -> float:
    """The last score minus the first; NaN if one is a hole (None or NaN) or there is one score only."""
    first, last = scores[0], scores[-1]
    return math.nan if len(scores) < 2 or first is None or last is None else last - first


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: the folder has no metrics.jsonl, or that file has no readable line.
    """
    metrics_file, config_file = path / "metrics.jsonl", path / "config.yaml"
    if not metrics_file.is_file():
        raise UserError(f"`{path}` is not a run: it has no metrics.jsonl; give a folder such as runs/NAME")
    lines = MetricsFile(metrics_file).read()
    if not lines:
        raise UserError(f"`{metrics_file}` has no readable line yet; wait until the run has recorded a step")
    text = config_file.read_text(encoding="utf-8", errors="replace") if config_file.is_file() else ""
    try:
        config = load_yaml(text, str(config_file))
    except UserError:
        config = None
    missing = missing_steps(lines, lines[-1]["step"])
    left_out = [f"metrics.jsonl has no intact line for step {missing}."] if missing else []
    sets: dict[str, dict[int, pa.Table]] = {}
    for name, folder in eval_folders(path).items():
        found = sets.setdefault(name, {})
        for step, file in tables(folder).items():
            try:
                found[step] = _read_eval(file)
            except UNREADABLE as error:
                named = file.relative_to(path).as_posix()
                left_out.append(f"{named} cannot be read ({first_line(error)}) and is left out.")
    evals = sets.pop(DEFAULT_SET)
    return Run(path, config if isinstance(config, dict) else {}, text, lines, evals, sets, left_out)


def until(run: Run, step: int) -> Run:
    """The run as it was at a step: its lines up to it, and of its evaluations the first and the one of this step."""
    lines = [line for line in run.lines if line["step"] <= step]

    def first_and_this(evals: dict[int, pa.Table]) -> dict[int, pa.Table]:
        return {at: evals[at] for at in sorted({min(evals, default=step), step} & evals.keys())}

    sets = {name: first_and_this(evals) for name, evals in run.sets.items()}
    return replace(run, lines=lines, evals=first_and_this(run.evals), sets=sets)


def _read_eval(file: Path) -> pa.Table:
    """The table of an evaluation.

    Raises:
        ValueError: the table is not that of an evaluation.
        OSError, ArrowException: the file is torn.
    """
    table = pq.read_table(file)
    table.validate(full=True)
    if missing := NEEDED - set(table.column_names):
        raise ValueError(f"it has no column {', '.join(sorted(missing))}")
    return table


def paired_scores(run: Run) -> list[PairedScore]:
    """The last evaluation compared with the first, for each scorer overall and by category.

    The list is empty if there are fewer than two evaluations.
    """
    return _first_and_last(run.evals, run.scorers)


def set_scores(run: Run) -> dict[str, list[PairedScore]]:
    """The last evaluation of each set in eval.sets compared with its first, by name. It must have two at least."""
    found = {}
    for name, evals in run.sets.items():
        if pairs := _first_and_last(evals, run.scorers_of(evals)):
            found[name] = pairs
    return found


def _first_and_last(evals: dict[int, pa.Table], scorers: Sequence[str]) -> list[PairedScore]:
    if len(evals) < 2:
        return []
    first, last = evals[min(evals)], evals[max(evals)]
    return compared(first, last, scorers)


def compared(before: pa.Table, after: pa.Table, scorers: Sequence[str]) -> list[PairedScore]:
    """Two tables of scores, for each scorer overall and by category, paired by prompt.

    An image is compared with the one of the same prompt and noise. Where a prompt has several images, they are not
    independent: its difference is the mean over them, and the interval is that of the prompts' differences.
    """
    at = {image: i for i, image in enumerate(_images(after))}
    shared = [(i, at[image]) for i, image in enumerate(_images(before)) if image in at]
    before, after = before.take([i for i, _ in shared]), after.take([i for _, i in shared])
    rows, categories = before["row"].to_numpy(), np.array(before["category"].to_pylist(), dtype=object)
    names = sorted({category for category in categories if category is not None})
    results = []
    for scorer in scorers:
        pair = _by_prompt(rows, scores(before, scorer), scores(after, scorer))
        results.append(paired_score(scorer, None, *pair))
        for name in names:
            chosen = categories == name
            parts = _by_prompt(rows[chosen], scores(before, scorer)[chosen], scores(after, scorer)[chosen])
            results.append(paired_score(scorer, name, *parts))
    return results


def _images(table: pa.Table) -> list[tuple[int, int]]:
    """The row of each image's prompt, and its number among the images of the prompt."""
    rows = table["row"].to_pylist()
    numbers = table["image"].to_pylist() if "image" in table.column_names else [0] * len(rows)
    return list(zip(rows, numbers, strict=True))


def _by_prompt(row_N: np.ndarray, before_N: np.ndarray, after_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean scores of each prompt (P,), over its images that have a score on both sides."""
    known_N = ~np.isnan(before_N) & ~np.isnan(after_N)
    before_P, after_P = (mean_by_prompt(row_N[known_N], scores_N[known_N]) for scores_N in (before_N, after_N))
    return before_P, after_P


def scores(table: pa.Table, scorer: str) -> np.ndarray:
    """The scores of a scorer, (N,). NaN is a hole."""
    return np.array([math.nan if value is None else value for value in table[scorer].to_pylist()], dtype=float)


def paired_score(name: str, category: str | None, before: np.ndarray, after: np.ndarray) -> PairedScore:
    """The means before and after, over the pairs without a hole, and their difference.

    Args:
        before: scores (N,).
        after: scores (N,) of the same prompts.
    """
    known = ~np.isnan(before) & ~np.isnan(after)
    before, after = before[known], after[known]
    if len(before) == 0:
        return PairedScore(name, category, math.nan, math.nan, math.nan, math.nan, 0)
    difference = after - before
    half = half_interval(difference.tolist()) if len(difference) > 1 else math.nan
    return PairedScore(
        name, category, float(before.mean()), float(after.mean()), float(difference.mean()), float(half), len(before)
    )


def by_sampling_step(lines: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """The mean over training steps of a list with one value per sampling step, (T,).

    It is NaN at sampling steps that drew no noise, and empty if the key was never recorded.
    """
    rows = [[number(value) for value in line[key]] for line in lines if isinstance(line.get(key), list)]
    columns = max((len(row) for row in rows), default=0)
    known = [[value for row in rows for value in row[i : i + 1] if value is not None] for i in range(columns)]
    return np.array([np.mean(values) if values else math.nan for values in known], dtype=float)
