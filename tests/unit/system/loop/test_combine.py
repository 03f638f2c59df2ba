"""The rules of reward.combine against values worked out by hand."""

import numpy as np
import pytest

from actors.learner.settings import AdvantageSettings
from actors.reward.counted import Counted
from actors.trajectory import Tree
from system.loop.advantage import advantages
from system.loop.combine import combine

EXACT = AdvantageSettings(epsilon=1e-12)
RULES = ["raw", "group_norm", "gdpo"]


def tree_of(decisions: int, width: int) -> Tree:
    leaves = np.arange(decisions * width).reshape(decisions, width, 1)
    return Tree(np.zeros(decisions, int), np.arange(decisions), leaves, decisions * width)


def task(*scores: tuple[float, list[float]]) -> Counted:
    """A task's scores of scorers a, b, …, as (weight, scores)."""
    names = "abc"[: len(scores)]
    return Counted(
        {name: np.array(score_M, float) for name, (_, score_M) in zip(names, scores, strict=True)},
        {name: weight for name, (weight, _) in zip(names, scores, strict=True)},
    )


def combined(rule_name, trees, tasks, rule=EXACT):
    return combine(rule_name, rule, trees, tasks)


def all_of(result) -> np.ndarray:
    return np.concatenate([advantage_NK.ravel() for advantage_NK in result.advantages.by_task])


def test_two_rewards_of_scales_1_and_100():
    """The small one says 0, 1, 2 and the large one 100, 0, 200. By hand: their sum 100, 1, 202 has the mean 101; alone
    they are (−1, 0, 1)·√1.5 and (0, −1, 1)·√1.5.
    """
    tree, said = tree_of(1, 3), task((1, [0, 1, 2]), (1, [100, 0, 200]))
    raw = combined("raw", [tree], [said])
    np.testing.assert_allclose(all_of(raw), np.array([-1, -100, 101]) / np.std([100, 1, 202]))
    assert raw.shares["a"] == pytest.approx(2 / 202)
    grouped = combined("group_norm", [tree], [said])
    np.testing.assert_allclose(all_of(grouped), np.array([-1, -1, 2]) * np.sqrt(1.5))
    gdpo = combined("gdpo", [tree], [said])
    np.testing.assert_allclose(all_of(gdpo), np.array([-1, -1, 2]) / np.sqrt(2))
    for result in (grouped, gdpo):
        assert result.shares == pytest.approx({"a": 0.5, "b": 0.5})


def test_gdpo_is_the_papers_formula_over_the_step():
    """Eqs. of GDPO, written out with loops: each reward in its group, the weighted sum, then the batch."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 2, 4)), 100 * rng.random((2, 2, 4))
    sums = np.zeros((2, 2, 4))
    for t in range(2):
        for n in range(2):
            for weight, r in ((1.0, a[t, n]), (0.3, b[t, n])):
                sums[t, n] += weight * (r - r.mean()) / r.std()
    expected = (sums - sums.mean()) / sums.std()
    tasks = [task((1.0, a[t].ravel()), (0.3, b[t].ravel())) for t in range(2)]
    np.testing.assert_allclose(all_of(combined("gdpo", [tree_of(2, 4)] * 2, tasks)), expected.ravel(), rtol=1e-9)


def test_only_gdpo_keeps_the_size_of_the_advantages_when_weights_grow():
    tree, scores = tree_of(1, 3), ([0, 1, 2], [100, 0, 200])
    for rule, grows in (("group_norm", 3), ("gdpo", 1)):
        once, thrice = (combined(rule, [tree], [task(*((w, s) for s in scores))]) for w in (0.5, 1.5))
        np.testing.assert_allclose(all_of(thrice), grows * all_of(once))


def test_raw_is_the_advantage_of_the_weighted_sum_bit_for_bit():
    tree, said = tree_of(2, 3), task((0.3, [1, 2, 4, 0, 0, 1]), (7, [5, 1, 1, 2, 9, 3]))
    np.testing.assert_array_equal(
        all_of(combined("raw", [tree], [said])), advantages(EXACT, [tree], [said.reward]).by_task[0].ravel()
    )


@pytest.mark.parametrize("rule", ["group_norm", "gdpo"])
def test_the_scale_of_a_scorer_does_not_matter_where_each_is_normalised(rule):
    tree, small = tree_of(2, 3), [0.1, 0.2, 0.3, 0.3, 0.1, 0.2]
    large = np.array([9.0, 3, 6, 0, 0, 3])
    once, rescaled = (combined(rule, [tree], [task((1, small), (0.5, factor * large))]) for factor in (1, 1000))
    np.testing.assert_allclose(all_of(once), all_of(rescaled), atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_a_hole_of_any_scorer_is_a_hole_of_the_action_and_moves_no_flat_group(rule):
    tree = tree_of(2, 3)
    said = task((1, [1, 2, 3, 5, 5, 5]), (1, [5, np.nan, 1, 7, 7, 7]))
    result = combined(rule, [tree], [said])
    advantage = result.advantages.by_task[0]
    assert advantage[0, 1] == 0
    assert result.advantages.holes == 1
    assert (advantage[1] == 0).all(), "a group without spread gets an advantage"


def test_gdpo_does_not_count_holes_in_the_size_of_the_step():
    """Of the known sums ±s, the root mean square is s, however many holes there are."""
    said = task((1, [0, np.nan, 2, np.nan]))
    np.testing.assert_allclose(all_of(combined("gdpo", [tree_of(1, 4)], [said])), [-1, 0, 1, 0])


@pytest.mark.parametrize("rule", RULES)
def test_a_step_without_spread_or_without_scores_has_no_advantages_and_unknown_shares(rule):
    for score in (3.0, np.nan):
        result = combined(rule, [tree_of(1, 3)], [task((1, [score] * 3), (1, [score] * 3))])
        assert (all_of(result) == 0).all()
        assert np.isnan(list(result.shares.values())).all()


@pytest.mark.parametrize("rule", ["group_norm", "gdpo"])
def test_pruning_looks_at_the_sum_of_scorers_not_at_each(rule):
    said = task((1, [0, 1, 2, 3]), (1, [3, 0, 1, 4]))
    kept = all_of(combined(rule, [tree_of(1, 4)], [said], AdvantageSettings(keep=1)))
    assert np.flatnonzero(kept).tolist() == [1, 3]


@pytest.mark.parametrize("rule", RULES)
def test_the_sum_is_clipped(rule):
    said = task((1, [0, 1, 2, 3]), (1, [0, 1, 2, 3]))
    assert np.abs(all_of(combined(rule, [tree_of(1, 4)], [said], AdvantageSettings(clip=0.5)))).max() == 0.5


@pytest.mark.parametrize("rule", RULES)
def test_tasks_of_different_categories_have_different_scorers(rule):
    """The first task has scorer a alone, the second b alone. Each is as it would be by itself, up to GDPO's size."""
    tree = tree_of(1, 3)
    first = task((1, [0, 1, 2]))
    second = Counted({"b": np.array([100.0, 0, 200])}, {"b": 2.0})
    result = combined(rule, [tree, tree], [first, second])
    a, b = (advantage_NK[0] for advantage_NK in result.advantages.by_task)
    unit = np.sqrt(1.5)
    size = {"raw": (1, 1), "group_norm": (1, 2), "gdpo": (1 / np.sqrt(2.5), 2 / np.sqrt(2.5))}[rule]
    np.testing.assert_allclose(a, size[0] * unit * np.array([-1, 0, 1]))
    np.testing.assert_allclose(b, size[1] * unit * np.array([0, -1, 1]))
    assert result.flat_groups == {"a": 0, "b": 0}
