"""What the report reads from a run folder."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from services.base.errors import UserError, first_line
from services.base.yaml_text import load_yaml
from system.run.folder import tables
from system.run.metrics_file import MetricsFile, missing_steps

Z_95 = 1.96
NOT_SCORES = {"row", "prompt", "category"}
UNREADABLE = (OSError, ValueError, pa.ArrowException)
"""What reading a torn Parquet file raises."""


@dataclass(frozen=True)
class PairedScore:
    """A score before and after on the same prompts and noise; holes are dropped in pairs."""

    name: str
    category: str | None
    before: float
    after: float
    difference: float
    half_interval: float
    """Half of the normal 95% interval of the mean difference; NaN for fewer than two pairs."""
    pairs: int


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    path: Path
    config: dict[str, Any]
    config_text: str
    lines: list[dict[str, Any]]
    """The lines of metrics.jsonl in the order of their steps, one a step."""
    evals: dict[int, pa.Table]
    left_out: list[str]
    """What is missing or cannot be read, a sentence each."""

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Lines of training steps."""
        return [line for line in self.lines if line["step"] > 0]

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each scorer of the recipe in the training reward; 0 is a scorer that is only watched."""
        listed = self.config.get("scorers")
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        return {str(entry["name"]): number(entry.get("weight")) or 0.0 for entry in entries if "name" in entry}

    @property
    def scorers(self) -> list[str]:
        """Scorers of the held-out evaluation: those of the recipe in its order, then any others."""
        if self.evals:
            columns = [set(table.column_names) for table in self.evals.values()]
            known = set.intersection(*columns) - NOT_SCORES
        else:
            keys = {key for line in self.lines for key in line}
            known = {key.split("/")[1] for key in keys if key.startswith("eval/")}
        return [name for name in self.weights if name in known] + sorted(known - set(self.weights))

    def section(self, key: str) -> dict[str, Any]:
        """A part of the recipe; empty where it is missing."""
        part = self.config.get(key)
        return part if isinstance(part, dict) else {}

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a scalar key, where it is a finite number."""
        points = [(line["step"], number(line.get(key))) for line in self.lines]
        known = [(step, value) for step, value in points if value is not None]
        return [step for step, _ in known], [value for _, value in known]

    def last(self, key: str) -> float | None:
        """The latest value of a scalar key."""
        values = self.series(key)[1]
        return values[-1] if values else None


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it has no metrics.jsonl, or no readable line in it.
    """
    metrics_file, config_file = path / "metrics.jsonl", path / "config.yaml"
    if not metrics_file.is_file():
        raise UserError(f"`{path}` is not a run: it has no metrics.jsonl")
    lines = MetricsFile(metrics_file).read()
    if not lines:
        raise UserError(f"nothing is recorded in `{metrics_file}` yet: it has no line with a step")
    text = config_file.read_text(encoding="utf-8", errors="replace") if config_file.is_file() else ""
    try:
        config = load_yaml(text, str(config_file))
    except UserError:
        config = None
    missing = missing_steps(lines, lines[-1]["step"])
    left_out = [f"metrics.jsonl has no intact line for step {missing}."] if missing else []
    evals = {}
    for step, file in tables(path / "eval").items():
        try:
            evals[step] = _read_eval(file)
        except UNREADABLE as error:
            left_out.append(f"eval/{file.name} cannot be read ({first_line(error)}) and is left out.")
    return Run(path, config if isinstance(config, dict) else {}, text, lines, evals, left_out)


def _read_eval(file: Path) -> pa.Table:
    """The table of an evaluation.

    Raises:
        ValueError: it is another table; others of `UNREADABLE`: it is torn.
    """
    table = pq.read_table(file)
    table.validate(full=True)
    if missing := NOT_SCORES - set(table.column_names):
        raise ValueError(f"it has no column {', '.join(sorted(missing))}")
    return table


def paired_scores(run: Run) -> list[PairedScore]:
    """First against last evaluation, for each scorer overall and by category; empty with fewer than two."""
    if len(run.evals) < 2:
        return []
    first, last = run.evals[min(run.evals)], run.evals[max(run.evals)]
    at = {row: i for i, row in enumerate(last["row"].to_pylist())}
    shared = [(i, at[row]) for i, row in enumerate(first["row"].to_pylist()) if row in at]
    first, last = first.take([i for i, _ in shared]), last.take([i for _, i in shared])
    categories = np.array(first["category"].to_pylist(), dtype=object)
    names = sorted({category for category in categories if category is not None})
    results = []
    for scorer in run.scorers:
        before, after = scores(first, scorer), scores(last, scorer)
        results.append(paired_score(scorer, None, before, after))
        results += [paired_score(scorer, name, before[categories == name], after[categories == name]) for name in names]
    return results


def scores(table: pa.Table, scorer: str) -> np.ndarray:
    """A scorer's column, (N,); NaN is a hole."""
    return np.array([math.nan if value is None else value for value in table[scorer].to_pylist()], dtype=float)


def paired_score(name: str, category: str | None, before: np.ndarray, after: np.ndarray) -> PairedScore:
    """The means (N,) before and after over the pairs without a hole, and their difference."""
    known = ~np.isnan(before) & ~np.isnan(after)
    before, after = before[known], after[known]
    if len(before) == 0:
        return PairedScore(name, category, math.nan, math.nan, math.nan, math.nan, 0)
    difference = after - before
    half = Z_95 * difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else math.nan
    return PairedScore(
        name, category, float(before.mean()), float(after.mean()), float(difference.mean()), float(half), len(before)
    )


def by_sampling_step(lines: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Mean over training steps of a list by sampling step, (T,); NaN where nothing was drawn, empty if unrecorded."""
    rows = [[number(value) for value in line[key]] for line in lines if isinstance(line.get(key), list)]
    columns = max((len(row) for row in rows), default=0)
    known = [[value for row in rows for value in row[i : i + 1] if value is not None] for i in range(columns)]
    return np.array([np.mean(values) if values else math.nan for values in known], dtype=float)
