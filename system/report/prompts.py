"""The prompts of a held-out set from the largest gain to the largest loss, with their scores at every evaluation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from system.loop.evaluation import mean_by_prompt
from system.report.data import change_of, scores

LINE_WIDTH, LINE_HEIGHT = 64, 16
"""Pixels of the line that shows a prompt's scores."""


@dataclass(frozen=True)
class PromptScores:
    """A prompt and its mean score over its images, by scorer and then by evaluation. NaN is a hole."""

    prompt: str
    scores: dict[str, list[float]]

    def change(self, scorer: str) -> float:
        """The change from the first evaluation to the last."""
        return change_of(self.scores[scorer])


def by_gain(evals: Mapping[int, pa.Table], scorers: Sequence[str], sorted_by: str) -> list[PromptScores]:
    """All prompts of a set's evaluations, from the largest gain to the largest loss; those without a change come last.

    Args:
        evals: by step.
        scorers: columns of all tables.
        sorted_by: the scorer whose change counts.
    """
    texts: dict[int, str] = {}
    for table in evals.values():
        texts |= dict(zip(table["row"].to_pylist(), map(str, table["prompt"].to_pylist()), strict=True))
    columns = {name: [_by_row(table, name) for table in evals.values()] for name in scorers}
    found = [
        PromptScores(text, {name: [at.get(row, math.nan) for at in steps] for name, steps in columns.items()})
        for row, text in sorted(texts.items())
    ]
    return sorted(found, key=lambda prompt: gain_first(prompt.change(sorted_by)))


def gain_first(change: float) -> tuple[bool, float]:
    """A key that sorts changes from the largest gain to the largest loss, and holes after them."""
    return math.isnan(change), 0.0 if math.isnan(change) else -change


def _by_row(table: pa.Table, scorer: str) -> dict[int, float]:
    """The mean score of each prompt's images, by row. Rows of holes are missing."""
    row_N, score_N = table["row"].to_numpy(), scores(table, scorer)
    known_N = ~np.isnan(score_N)
    means_P = mean_by_prompt(row_N[known_N], score_N[known_N])
    return dict(zip(np.unique(row_N[known_N]).tolist(), means_P.tolist(), strict=True))


def score_lines(prompts: Sequence[PromptScores], scorer: str) -> list[Markup]:
    """For each prompt its scores as a small line, all on one scale; empty if it has fewer than two."""
    known = [value for prompt in prompts for value in prompt.scores[scorer] if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return [_line(prompt.scores[scorer], low, high) for prompt in prompts]


def _line(values: Sequence[float], low: float, high: float) -> Markup:
    points = [
        f"{i / (len(values) - 1) * (LINE_WIDTH - 2) + 1:.0f},{_height(value, low, high):.1f}"
        for i, value in enumerate(values)
        if len(values) > 1 and not math.isnan(value)
    ]
    if len(points) < 2:
        return Markup()
    return Markup('<svg class="line" viewBox="0 0 {} {}" aria-hidden="true"><polyline points="{}"/></svg>').format(
        LINE_WIDTH, LINE_HEIGHT, " ".join(points)
    )


def _height(value: float, low: float, high: float) -> float:
    """Where a value is, in pixels from the top."""
    share = (value - low) / (high - low) if high > low else 0.5
    return (1 - share) * (LINE_HEIGHT - 2) + 1
