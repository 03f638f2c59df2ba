"""Columns of metrics, and curves of many steps in few points."""

import math
from itertools import pairwise

import numpy as np

from system.watch.columns import MAX_POINTS, RECENT, Columns


def columns_of(*lines):
    columns = Columns()
    for line in lines:
        columns.add(line)
    return columns


def test_a_curve_has_the_steps_with_a_finite_number():
    columns = columns_of({"step": 0, "a": 1}, {"step": 1}, {"step": 2, "a": None}, {"step": 5, "a": 3.5, "b": [1, 2]})
    curve = columns.curve("a")
    assert (curve.steps, curve.values, curve.low, curve.high) == ([0, 5], [1.0, 3.5], [], [])
    assert columns.curve("b").steps == columns.curve("never").steps == []
    assert (columns.last("a"), columns.last("never")) == (3.5, None)


def test_steps_that_are_made_again_replace_the_old_ones():
    columns = columns_of(*({"step": step, "a": step} for step in range(5)), {"step": 2, "a": 20, "new": 1})
    assert columns.curve("a").values == [0, 1, 20]
    assert columns.curve("new").steps == [2]
    assert [line["step"] for line in columns.recent] == [0, 1, 2]
    columns.add({"step": 3})
    assert all(len(column) == 4 for column in columns.values.values())


def test_a_long_curve_keeps_means_and_extremes():
    count = 10 * MAX_POINTS + 7
    values = np.random.default_rng(0).normal(size=count)
    curve = columns_of(*({"step": i, "a": float(value)} for i, value in enumerate(values))).curve("a")
    assert len(curve.steps) == MAX_POINTS
    assert curve.steps[-1] == count - 1
    ends = [0, *(step + 1 for step in curve.steps)]
    for i, (start, end) in enumerate(pairwise(ends)):
        part = values[start:end]
        assert math.isclose(curve.values[i], part.mean(), abs_tol=1e-12)
        assert (curve.low[i], curve.high[i]) == (part.min(), part.max())


def test_few_whole_lines_are_kept():
    assert len(columns_of(*({"step": step} for step in range(100))).recent) == RECENT
