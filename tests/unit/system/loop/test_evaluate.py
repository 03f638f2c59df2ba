"""Held-out scores: which prompts, which noise, which pictures, and their means."""

import json

import numpy as np
import pytest

from services.scoring.settings import ScorerSettings
from system.loop.evaluate import EVAL_STREAM, evaluate
from system.loop.evaluation import best_by
from system.loop.heldout import read_sets
from system.loop.stop import Stopped
from system.recipe.evaluation import EvalSet
from system.recipe.load import load_config
from tests.helpers.evaluations import evaluation_of
from tests.helpers.fakes import FakeRoles


@pytest.fixture
def config(tmp_path):
    rows = [{"prompt": f"prompt {i}", "category": "even" if i % 2 == 0 else "odd"} for i in range(9)]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_config(
        "shapes", [f"data.heldout={tmp_path / 'heldout.jsonl'}", "eval.prompts=7", "eval.batch=3", "eval.grid=4"]
    )


def test_each_prompt_has_its_own_noise_and_one_row_in_the_order_of_the_file(config):
    roles, asked = FakeRoles(), []
    sample = roles.rollouts.sample

    def watched(prompts, addresses, *more):
        asked.append((prompts, addresses, *more))
        return sample(prompts, addresses, *more)

    roles.rollouts.sample = watched
    progress = []
    result = evaluate(roles, config, read_sets(config), lambda: None, progress=lambda *told: progress.append(told))[
        "heldout"
    ]
    assert result.table["row"].to_pylist() == list(range(7))
    assert result.table["prompt"].to_pylist() == [f"prompt {i}" for i in range(7)]
    assert [address for _, addresses, *_ in asked for address in addresses] == [
        (0, EVAL_STREAM, i, 0) for i in range(7)
    ]
    assert {sampling for _, _, sampling, *_ in asked} == {config.eval_sampling}
    assert progress[-1] == (3, 3)
    assert result.grid_NHWC.shape == (4, 4, 4, 3)
    assert roles.rollouts.budget.reserved == 0


def test_means_are_over_all_and_by_category_and_holes_are_left_out(config):
    roles = FakeRoles()

    def by_row(images, prompts, names, finite_M, rows, group):
        scores = [float(prompt.split()[1]) for prompt in prompts]
        scores = [np.nan if score == 6 else score for score in scores]
        done = roles_score(images, prompts, names, finite_M)
        for name in names:
            done.result().by_scorer[name][:] = scores
        return done

    roles_score = roles.rewards.score
    roles.rewards.score = by_row
    result = evaluate(roles, config, read_sets(config), lambda: None)["heldout"]
    assert {key: value for key, value in result.summary().items() if "judge" in key} == {
        "eval/judge": pytest.approx(15 / 6),
        "eval_error/judge": pytest.approx(np.std([0, 1, 2, 3, 4, 5], ddof=1) / np.sqrt(6)),
        "eval_holes/judge": 1,
        "eval/judge/even": pytest.approx(2),
        "eval/judge/odd": pytest.approx(3),
    }


def test_a_stop_ends_it(config):
    def stop() -> None:
        raise Stopped("SIGTERM")

    with pytest.raises(Stopped):
        evaluate(FakeRoles(), config, read_sets(config), stop)


def test_images_are_bounded_as_in_training(config):
    """A budget of one byte lets one batch at a time through; the fake asserts that it may reserve."""
    roles = FakeRoles(bound=1)
    evaluate(roles, config, read_sets(config), lambda: None)
    assert roles.rollouts.take_peak_bytes() == 3 * 4 * 4 * 3


def test_nothing_to_show_is_an_empty_picture(config):
    without = config.model_copy(update={"eval": config.eval.model_copy(update={"grid": 0})})
    result = evaluate(FakeRoles(), without, read_sets(config), lambda: None)["heldout"]
    assert len(result.grid_NHWC) == 0


class Reads:
    """A scorer that asks for rows."""

    def __call__(self, images_NHWC, prompts, rows): ...


class Rank:
    """A groupwise scorer."""

    groupwise = True

    def __call__(self, images_NHWC, prompts): ...


def with_scorers(config, *kinds: type):
    scorers = tuple(ScorerSettings(name=k.__name__.lower(), scorer=f"{__name__}:{k.__name__}") for k in kinds)
    return config.model_copy(update={"scorers": scorers})


def test_scorers_get_the_rows_and_groupwise_ones_are_not_asked(config):
    roles, config = FakeRoles(), with_scorers(config, Reads, Rank)
    result = evaluate(roles, config, read_sets(config), lambda: None)["heldout"]
    rows = [{"category": "even" if i % 2 == 0 else "odd"} for i in range(7)]
    assert roles.rewards.asked == [(["reads"], rows[start : start + 3]) for start in (0, 3, 6)]
    assert result.scores == ["reads"]
    assert result.reward(config) is None, "the mean of a relative score says nothing"
    alone = with_scorers(config, Reads)
    assert result.reward(alone) == result.summary()["eval/reads"]


class WinRate(Rank):
    """A groupwise scorer whose mean says nothing."""

    relative = True


def test_a_relative_scorer_is_not_asked_even_about_several_images_of_a_prompt(config):
    settings = config.eval.model_copy(update={"images_per_prompt": 2})
    config = with_scorers(config, Rank, WinRate).model_copy(update={"eval": settings})
    roles = FakeRoles()
    result = evaluate(roles, config, read_sets(config), lambda: None)["heldout"]
    assert {name for names, _ in roles.rewards.asked for name in names} == {"rank"}
    assert result.scores == ["rank"]
    assert result.reward(config) is None


def test_sub_scores_have_columns_and_means_of_their_own(config):
    roles = FakeRoles()
    score = roles.rewards.score

    def with_sub_scores(images, prompts, names, *more):
        done = score(images, prompts, names, *more)
        if prompts[0] != "prompt 0":
            done.result().sub_scores["judge.hue"] = np.arange(float(len(prompts)))
        return done

    roles.rewards.score = with_sub_scores
    result = evaluate(roles, config, read_sets(config), lambda: None)["heldout"]
    assert result.table.column_names[-1] == "judge.hue"
    np.testing.assert_array_equal(result.table["judge.hue"], [np.nan, np.nan, np.nan, 0, 1, 2, 0])
    assert result.summary()["eval/judge.hue"] == pytest.approx(3 / 4)
    assert result.summary()["eval_holes/judge.hue"] == 3


def test_a_prompt_with_several_images_is_a_group_of_one_job(config):
    """Jobs of at most three images hold one prompt of two; a groupwise scorer gets each prompt alone."""
    roles, asked = FakeRoles(), []
    sample, score = roles.rollouts.sample, roles.rewards.score

    def sampled(prompts, addresses, *more):
        asked.append(addresses)
        return sample(prompts, addresses, *more)

    def watched(images, prompts, names, finite_M, rows, group):
        assert (len(prompts), group) == (2, 2)
        return score(images, prompts, names, finite_M, rows)

    roles.rollouts.sample, roles.rewards.score = sampled, watched
    settings = config.eval.model_copy(update={"images_per_prompt": 2})
    config = with_scorers(config, Rank).model_copy(update={"eval": settings})
    result = evaluate(roles, config, read_sets(config), lambda: None)["heldout"]
    assert asked == [[(0, EVAL_STREAM, row, 0), (0, EVAL_STREAM, row, 1)] for row in range(7)]
    assert result.scores == ["rank"]
    assert result.table["row"].to_pylist() == [row for row in range(7) for _ in range(2)]
    assert result.table["image"].to_pylist() == [0, 1] * 7
    assert result.reward(config) == result.summary()["eval/rank"]


def test_each_set_has_its_own_metrics_and_one_may_choose_the_best_checkpoint(config, tmp_path):
    (tmp_path / "more.txt").write_text("a prompt\n")
    sets = {"more": EvalSet(prompts=str(tmp_path / "more.txt"), scorers=("judge",))}

    def found(best: str | None):
        settings = config.eval.model_copy(update={"sets": sets, "best": best})
        changed = config.model_copy(update={"eval": settings})
        done = evaluate(FakeRoles(), changed, read_sets(changed), lambda: None)
        return changed, done

    changed, done = found(None)
    assert list(done) == ["heldout", "more"]
    assert done["more"].summary().keys() == {"eval.more/judge", "eval_holes.more/judge", "eval_error.more/judge"}
    assert "eval/judge" in done["heldout"].summary()
    assert best_by(changed, done) == done["heldout"].reward(changed)
    changed, done = found("more/judge")
    assert best_by(changed, done) == done["more"].summary()["eval.more/judge"]
    assert best_by(changed, {}) is None


def test_the_held_out_reward_counts_scores_as_training_does():
    """Scores 0, 10, 20, 30 clipped to 15 and scaled: 0, 1, 1.5, 1.5. The second fails its gate, the judge counts for
    `odd` alone, and the hole of an image without a weight is none.
    """
    config = load_config("shapes", [
        "scorers.0.clip=[null, 15]",
        "scorers.0.scale=0.1",
        "scorers.0.gate={score: judge, min: 0.5, otherwise: -1}",
        "scorers.1.category_weights={odd: 2}",
    ])  # fmt: skip
    columns = {"category": ["even", "odd"] * 2, "pickscore": [0.0, 10, 20, 30], "judge": [1.0, 0.25, 0.75, 1]}
    result = evaluation_of(**columns)
    assert result.reward(config) == pytest.approx((0 - 0.1 + 1.5 + 1.5) / 4 + 2 * (0.25 + 1) / 4)
    del columns["judge"]
    assert evaluation_of(**columns).reward(config) is None


def test_a_hole_counts_against_the_held_out_reward_only_where_the_scorer_has_a_weight():
    config = load_config("shapes", ["scorers.1.category_weights={odd: 2}"])
    columns = {"category": ["even", "odd"] * 2, "pickscore": [1.0] * 4, "judge": [np.nan, 1.0, np.nan, 1.0]}
    result = evaluation_of(**columns)
    assert result.reward(config) == pytest.approx(1 + 2 * 2 / 4)
    columns["judge"] = [1.0, np.nan, 1.0, 1.0]
    assert evaluation_of(**columns).reward(config) is None
