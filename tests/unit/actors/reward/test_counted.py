"""Clipping, gating, scaling and weighing against numbers by hand, and what each does with a hole."""

import numpy as np
import pytest
from pydantic import ValidationError

from actors.reward.counted import as_counted, counted
from actors.reward.scores import Scores
from services.scoring.settings import ScorerSettings

HOLE = np.nan


def scorer(name: str = "a", **settings) -> ScorerSettings:
    return ScorerSettings(name=name, scorer="jpeg_size", **settings)


def test_a_score_counts_as_it_is_if_nothing_else_is_asked():
    score_M = np.array([0.1 + 0.2, -1e300, HOLE])
    np.testing.assert_array_equal(as_counted(scorer(), {"a": score_M}), score_M)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [([0, 1], [0, 0.5, 1, HOLE]), ([None, 1], [-2, 0.5, 1, HOLE]), ([0.75, None], [0.75, 0.75, 9, HOLE])],
)
def test_clip_bounds_either_side(clip, expected):
    np.testing.assert_array_equal(as_counted(scorer(clip=clip), {"a": np.array([-2, 0.5, 9, HOLE])}), expected)


def test_a_gate_lets_a_score_through_within_its_bounds_and_both_bounds_belong_to_it():
    gated = scorer(gate={"score": "ocr", "min": 0.5, "max": 0.9, "otherwise": -3})
    scores = {"a": np.array([1.0, 2, 3, 4]), "ocr": np.array([0.49, 0.5, 0.9, 0.91])}
    assert as_counted(gated, scores).tolist() == [-3, 2, 3, -3]
    assert as_counted(scorer(gate={"score": "ocr", "max": 0.5}), scores).tolist() == [1, 2, 0, 0]


def test_a_hole_of_the_score_or_of_its_gate_is_a_hole_whether_the_gate_is_open_or_not():
    scores = {"a": np.array([HOLE, HOLE, 1, 1]), "ocr": np.array([0.0, 1, HOLE, 1])}
    np.testing.assert_array_equal(as_counted(scorer(gate={"score": "ocr", "min": 0.5}), scores), [HOLE, HOLE, HOLE, 1])


def test_a_gate_may_look_at_a_sub_score_and_is_a_hole_where_there_is_none():
    gated = scorer(gate={"score": "judge.text", "min": 0.5})
    scores = Scores({"a": np.array([2.0, 2.0])}, {"judge.text": np.array([1.0, 0.0])})
    assert counted([gated], scores, None).reward.tolist() == [2, 0]
    assert np.isnan(counted([gated], Scores({"a": np.array([2.0, 2.0])}), None).reward).all()


def test_scores_are_clipped_then_gated_then_scaled():
    """Another order would give 100 for the first (scaled before the clip) or 7 for the second (scaled before)."""
    one = scorer(clip=[0, 50], scale=0.1, gate={"score": "a", "max": 60, "otherwise": 7})
    assert as_counted(one, {"a": np.array([55.0, 1000.0])}).tolist() == pytest.approx([5.0, 0.7])


def test_the_reward_is_the_weighted_sum_and_a_hole_where_a_score_with_a_weight_is_one():
    scores = Scores({"a": np.array([1.0, HOLE, 3]), "b": np.array([10.0, 20, 30]), "judge": np.full(3, HOLE)})
    task = counted([scorer(weight=2), scorer("b", weight=0.1), scorer("judge", weight=0)], scores, None)
    np.testing.assert_allclose(task.reward, [3, HOLE, 9])
    assert task.weights == {"a": 2, "b": 0.1}


def test_a_category_has_weights_of_its_own_and_a_scorer_without_one_is_not_looked_at():
    ocr = scorer("ocr", weight=0, category_weights={"text": 3})
    scores = Scores({"a": np.array([1.0]), "ocr": np.array([HOLE])})
    assert counted([scorer(), ocr], scores, "shapes").reward.tolist() == [1]
    assert counted([scorer(), ocr], scores, None).reward.tolist() == [1]
    assert np.isnan(counted([scorer(), ocr], scores, "text").reward).all()
    scores = Scores({"a": np.array([1.0]), "ocr": np.array([2.0])})
    assert counted([scorer(category_weights={"text": 0.5}), ocr], scores, "text").reward.tolist() == [6.5]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip": [None, None]}, "both sides are open"),
        ({"clip": [1, 1]}, "the first number must be less than the second"),
        ({"clip": [1]}, "clip"),
        ({"scale": 0}, "greater than 0"),
        ({"gate": {"score": "b"}}, "set min or max"),
        ({"gate": {"score": "b", "min": 2, "max": 1}}, "min is 2, which is more than max, 1"),
        ({"gate": {"score": "B b", "min": 2}}, "pattern"),
        ({"category_weights": {"x": "1"}}, "valid number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        scorer(**settings)
