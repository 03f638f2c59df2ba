"""What the report reads from a run folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from services.errors import UserError

Z_95 = 1.96


@dataclass(frozen=True)
class Paired:
    """A score before and after on the same prompts and noise; holes are dropped in pairs."""

    name: str
    category: str | None
    before: float
    after: float
    difference: float
    half_interval: float
    """Half of the normal 95% interval of the mean difference."""
    pairs: int


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    path: Path
    config: dict[str, Any]
    config_text: str
    lines: list[dict[str, Any]]
    evals: dict[int, pa.Table]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Lines of training steps."""
        return [line for line in self.lines if line["step"] > 0]

    @property
    def scorers(self) -> list[str]:
        """Scorers of the held-out evaluation, training rewards first."""
        known = next(iter(self.evals.values())).column_names if self.evals else []
        return [scorer["name"] for scorer in self.config.get("scorers", []) if scorer["name"] in known]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a scalar key, where it is there."""
        points = [(line["step"], line[key]) for line in self.lines if line.get(key) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def picture(self, step: int, index: int) -> Path:
        return self.path / "samples" / f"step_{step:06d}" / f"{index:03d}.png"


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it is not one, or nothing is recorded in it.
    """
    config_file, metrics_file = path / "config.yaml", path / "metrics.jsonl"
    if not config_file.is_file() or not metrics_file.is_file():
        raise UserError(
            f"`{path}` is not a run: it has no {'metrics.jsonl' if config_file.is_file() else 'config.yaml'}"
        )
    text = config_file.read_text()
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines() if line.strip()]
    if not lines:
        raise UserError(f"nothing is recorded in `{metrics_file}` yet")
    files = sorted((path / "eval").glob("step_*.parquet"))
    evals = {int(file.stem.removeprefix("step_")): pq.read_table(file) for file in files}
    return Run(path, yaml.safe_load(text), text, lines, evals)


def comparisons(run: Run) -> list[Paired]:
    """First against last evaluation, for each scorer overall and by category."""
    if len(run.evals) < 2:
        return []
    first, last = run.evals[min(run.evals)], run.evals[max(run.evals)]
    shared = min(len(first), len(last))
    first, last = first.slice(0, shared), last.slice(0, shared)
    categories = np.array(first["category"].to_pylist(), dtype=object)
    names = sorted({c for c in categories if c is not None})
    results = []
    for scorer in run.scorers:
        before, after = first[scorer].to_numpy(), last[scorer].to_numpy()
        results.append(_paired(scorer, None, before, after))
        results += [_paired(scorer, c, before[categories == c], after[categories == c]) for c in names]
    return results


def _paired(name: str, category: str | None, before: np.ndarray, after: np.ndarray) -> Paired:
    known = ~np.isnan(before) & ~np.isnan(after)
    before, after = before[known], after[known]
    if len(before) == 0:
        nan = float("nan")
        return Paired(name, category, nan, nan, nan, nan, 0)
    difference = after - before
    half = Z_95 * difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else float("nan")
    return Paired(
        name, category, float(before.mean()), float(after.mean()), float(difference.mean()), float(half), len(before)
    )


def by_sampling_step(lines: list[dict[str, Any]], key: str) -> np.ndarray:
    """Mean over training steps of a list by sampling step, (T,); NaN where nothing was drawn."""
    rows = np.array([line[key] for line in lines if line.get(key)], dtype=float)
    known = ~np.isnan(rows)
    with np.errstate(invalid="ignore"):
        return np.where(known, rows, 0).sum(0) / known.sum(0)
