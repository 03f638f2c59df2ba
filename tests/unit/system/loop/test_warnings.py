"""Which sequences of steps are warned of, and which are not."""

import math

import pytest

from system.loop.warnings import PAUSE, WINDOW, Warnings
from system.recipe.load import load_config

FLAT = "reward/pickscore/flat_groups"


def warnings_of(lines, *overrides, recipe="shapes"):
    """The warnings of a run, by step; a line without a step has its number in the list, from 1."""
    warnings = Warnings(load_config(recipe, list(overrides)))
    return {
        line["step"]: said
        for line in ({"step": i} | line for i, line in enumerate(lines, 1))
        if (said := warnings.after(line))
    }


def test_groups_without_spread_are_warned_of_after_a_window_of_them():
    assert warnings_of([{FLAT: 0.9}] * (WINDOW - 1)) == {}
    assert list(warnings_of([{FLAT: 0.0}] * WINDOW + [{FLAT: 0.9}] * 3)) == [WINDOW + 3], "the mean of 0, 0, 0.9 ×3"


def test_a_warning_names_the_step_the_scorer_the_number_and_what_to_try():
    (sentence,) = warnings_of([{FLAT: 0.75}] * WINDOW)[WINDOW]
    for part in (f"step {WINDOW}: ", "`pickscore`", "75%", "raise kernel.noise_level or plan.explorations"):
        assert part in sentence


def test_a_warning_comes_again_only_after_a_pause():
    assert list(warnings_of([{FLAT: 1.0}] * (WINDOW + 2 * PAUSE))) == [WINDOW, WINDOW + PAUSE, WINDOW + 2 * PAUSE]


@pytest.mark.parametrize("value", [0.5, math.nan, None])
def test_half_of_the_groups_or_an_unknown_share_is_no_warning(value):
    assert warnings_of([{FLAT: value}] * 10) == {}


def evaluated(step, judge, pickscore, error=0.01):
    return {
        "step": step,
        "eval/judge": judge,
        "eval/pickscore": pickscore,
        "eval_error/judge": error,
        "eval_error/pickscore": error,
    }


def test_a_watcher_that_falls_while_the_reward_rises_is_warned_of_with_the_pictures():
    said = warnings_of([evaluated(0, 0.5, 1.0), evaluated(10, 0.6, 1.1), evaluated(20, 0.5, 1.2)])
    assert list(said) == [20]
    for part in ("`judge`", "from 0.6 (step 10) to 0.5", "`pickscore` went from 1.1 to 1.2"):
        assert part in said[20][0]
    assert "samples/step_000020 with samples/step_000010" in said[20][0]
    without = warnings_of([evaluated(0, 0.6, 1.0), evaluated(20, 0.5, 1.2)], "eval.grid=0")
    assert "samples" not in without[20][0]


@pytest.mark.parametrize(
    ("then", "overrides"),
    [
        (evaluated(10, 0.4, 1.0), []),  # both fall or stay
        (evaluated(10, 0.7, 1.5), []),  # both rise
        (evaluated(10, 0.56, 1.5), []),  # 0.04 is less than three standard errors, 3·0.01·√2
        (evaluated(10, 0.4, 1.5, error=None), []),  # one image
        (evaluated(10, None, 1.5), []),  # nothing but holes
        (evaluated(10, 0.4, 1.5), ["scorers.1.weight=1"]),  # trained on
        (evaluated(10, 0.4, 1.5), ["scorers.0.gate={score: judge, min: 0}"]),  # trained on through a gate
        (evaluated(10, 0.4, 1.5), ["scorers.0.weight=-1"]),  # the reward falls
    ],
)
def test_what_is_not_reward_hacking(then, overrides):
    assert warnings_of([evaluated(0, 0.6, 1.0), then], *overrides) == {}


def test_a_scorer_with_a_negative_weight_improves_downwards():
    assert 10 in warnings_of([evaluated(0, 0.6, 1.0), evaluated(10, 0.4, 0.5)], "scorers.0.weight=-1")


def test_an_evaluation_of_holes_is_never_the_best_one():
    lines = [evaluated(0, None, 1.0), evaluated(10, 0.6, 1.1), evaluated(20, None, 1.2), evaluated(30, 0.4, 1.3)]
    assert list(warnings_of(lines)) == [30]


def test_a_gradient_below_adams_epsilon():
    assert warnings_of([{"grad_rms": 1.1e-8}] * WINDOW) == {}
    assert warnings_of([{"grad_rms": 0.0}] * WINDOW) == {}, "there is no gradient, and flat groups are the reason"
    (sentence,) = warnings_of([{"grad_rms": 5e-9}] * WINDOW)[WINDOW]
    assert "5.0e-09" in sentence
    assert "ε = 1e-08" in sentence
    assert "lower learner.eps to 5e-11" in sentence
    assert warnings_of([{"grad_rms": 5e-9}] * WINDOW, "learner.eps=1e-10") == {}


def test_a_scorer_whose_requests_take_most_of_the_step():
    slow = {"seconds/step": 14.0, "seconds/eval": 4.0, "seconds/request/pickscore": 6.0}
    (sentence,) = warnings_of([slow] * WINDOW)[WINDOW]
    for part in ("`pickscore` takes 6 s", "60% of a step", "scorers.0.replicas"):
        assert part in sentence
    assert warnings_of([slow | {"seconds/request/pickscore": 5.0}] * WINDOW) == {}


def test_each_scorer_is_warned_of_by_itself():
    line = {FLAT: 1.0, "reward/hpsv3/flat_groups": 1.0}
    assert len(warnings_of([line] * WINDOW, recipe="shapes_both")[WINDOW]) == 2


def test_a_resumed_run_warns_as_the_whole_run():
    lines = [{"step": i, FLAT: 1.0} for i in range(1, 40)]
    whole, resumed = Warnings(load_config("shapes")), Warnings(load_config("shapes"))
    said = [whole.after(line) for line in lines]
    for line in lines[:17]:
        resumed.after(line)
    assert [resumed.after(line) for line in lines[17:]] == said[17:]
