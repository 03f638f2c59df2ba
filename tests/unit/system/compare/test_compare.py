"""What is kept of a run, and what the page says of several."""

import json

import numpy as np
import pytest
import yaml
from rich.console import Console

from services.base.errors import UserError
from system.compare.page import crossing, write_page
from system.compare.result import Point, Result, condense, key_of
from system.compare.runs import Contender, parse_contenders, run_all
from system.compare.student import half_interval
from system.run.opening import open_run


def points(*scores, nfe=1000):
    return [
        Point(10 * i, nfe * i, 24 * i, 48 * i, 2.0 * i, {"reward": 1 + s / 10, "judge": s})
        for i, s in enumerate(scores)
    ]


def result(contender, seed, *scores, nfe=1000, spread=(0.2, 0.1, None)):
    recipe = {"plan": {"name": "trunk"}, "lr": 1e-3}
    return Result(contender, seed, "key", "0.1 abc", recipe, ["reward"], points(*scores, nfe=nfe), list(spread))


def test_a_contender_is_a_recipe_with_overrides_and_a_name():
    assert Contender.parse("shapes") == Contender("shapes", "shapes", ())
    slow = Contender.parse("shapes learner.lr=1e-4 name=slow")
    assert slow == Contender("slow", "shapes", ("learner.lr=1e-4",))
    assert Contender.parse("my/own.yaml").name == "own"
    quoted = Contender.parse("shapes 'plan={name: chain, seeds: 4}'")
    assert quoted.overrides == ("plan={name: chain, seeds: 4}",)
    for wrong in ("shapes 'plan", " "):
        with pytest.raises(UserError, match="not a recipe with overrides"):
            Contender.parse(wrong)
    with pytest.raises(UserError, match="two contenders are named shapes"):
        parse_contenders(["shapes", "shapes learner.lr=1"])


def test_an_override_alone_is_for_every_contender_before_its_own(tmp_path):
    one, two = parse_contenders(["shapes learner.lr=1e-4", "eval.prompts=64", "shapes name=two", "learner.lr=2e-4"])
    assert (one.name, two.name) == ("shapes", "two")
    configs = [contender.config(0, 80_000, 8, tmp_path) for contender in (one, two)]
    assert [(config.eval.prompts, config.learner.lr) for config in configs] == [(64, 1e-4), (64, 2e-4)]
    (several,) = parse_contenders(["learner.lr=1e-4 eval.prompts=64", "shapes"])
    assert several.overrides == ("learner.lr=1e-4", "eval.prompts=64")
    for texts, message in (
        (["eval.prompts=64"], "nothing to compare"),
        (["shapes", "name=x"], "must belong to one contender"),
    ):
        with pytest.raises(UserError, match=message):
            parse_contenders(texts)


def test_an_equal_budget_is_as_many_steps_as_it_pays_for(tmp_path):
    budget = 80_000
    plain = Contender.parse("shapes").config(3, budget, 8, tmp_path)
    # 4 prompts of 4 trunks: 4 velocities of the trunk and 6 of each completion, and a forward and backward a decision.
    per_step = 4 * (4 * (4 + 6 * (5 + 4 + 3 + 2)) + 3 * 16)
    assert (plain.steps, plain.eval.every, plain.seed) == (budget // per_step, 6, 3)
    assert plain.name == "shapes-seed3"
    drawn = Contender.parse("shapes plan.strata=1").config(0, budget, 8, tmp_path)
    assert drawn.steps > 3 * plain.steps
    pruned, whole = (
        Contender.parse(f"shapes_branchgrpo {more}").config(0, budget, 8, tmp_path)
        for more in ("advantage.keep=1", "advantage.keep=null")
    )
    assert pruned.steps > 1.5 * whole.steps
    assert key_of(plain) != key_of(Contender.parse("shapes").config(3, 2 * budget, 8, tmp_path))
    again = Contender.parse("shapes name=other").config(3, budget, 8, tmp_path / "elsewhere")
    assert key_of(plain) == key_of(again)


@pytest.mark.parametrize(
    ("contenders", "message"),
    [
        (["shapes", "shapes_both"], "shapes_both-seed0 has other scorers"),
        (["shapes data.heldout=null"], "needs held-out prompts"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(contenders, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run_all(parse_contenders(contenders), [0], 8000, 2, tmp_path, Console())
    assert not (tmp_path / "runs").exists()


def test_a_result_of_another_budget_is_not_taken_for_this_one(tmp_path):
    result("shapes", 0, 0.5, 0.6).save(tmp_path / "shapes-seed0.json")
    with pytest.raises(UserError, match=r"shapes-seed0\.json belongs to another recipe or budget"):
        run_all(parse_contenders(["shapes"]), [0], 8000, 2, tmp_path, Console())


def test_a_run_folder_of_another_budget_is_not_gone_on_with(tmp_path):
    contenders = parse_contenders(["shapes"])
    with open_run(contenders[0].config(0, 80_000, 2, tmp_path / "runs"), resume=False) as run:
        run.append_metrics({"step": 0})
    with pytest.raises(UserError, match=r"runs/shapes-seed0 belongs to another recipe or budget"):
        run_all(contenders, [0], 8000, 2, tmp_path, Console())


def test_a_stale_result_of_the_last_seed_is_found_before_anything_runs(tmp_path):
    result("shapes", 2, 0.5, 0.6).save(tmp_path / "shapes-seed2.json")
    with pytest.raises(UserError, match=r"shapes-seed2\.json belongs to another recipe or budget"):
        run_all(parse_contenders(["shapes"]), range(3), 8000, 2, tmp_path, Console())
    assert not (tmp_path / "runs").exists()


def test_the_cost_of_a_target_is_linear_between_evaluations():
    assert crossing(points(0.5, 0.6, 0.8), "judge", 0.7) == pytest.approx((1500, 36, 72))
    assert crossing(points(0.5, 0.6, 0.55, 0.8), "judge", 0.6) == pytest.approx((1000, 24, 48))
    assert crossing(points(0.5, 0.6), "judge", 0.7) is None
    assert crossing(points(0.8, 0.6), "judge", 0.7) == (0, 0, 0)
    holes = points(0.5, 0.6, 0.8)
    holes[1].held_out["judge"] = None
    assert crossing(holes, "judge", 0.65) == pytest.approx((1000, 24, 48))


def test_a_result_is_read_as_it_was_written(tmp_path):
    one = result("a", 0, 0.5, 0.6)
    one.save(tmp_path / "a.json")
    assert Result.load(tmp_path / "a.json") == one
    (tmp_path / "b.json").write_text('{"contender": "b"}')
    with pytest.raises(UserError, match=r"b\.json: not a result"):
        Result.load(tmp_path / "b.json")


def test_a_run_in_small(tmp_path):
    config = {
        "seed": 4,
        "plan": {},
        "kernel": {},
        "advantage": {},
        "objective": {},
        "data": {"prompts_per_step": 2},
        "learner": {"lr": 1},
        "scorers": [{"name": "reward", "weight": 1.0}, {"name": "judge", "weight": 0}],
        "tempflow": {"version": "0.1", "commit": "abcdef0123456789-dirty"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    counts = {"decodes": 5, "scores": 7}
    lines = [
        {"step": 0, "nfe": 0, "eval/reward": 1, "eval/judge": 0.5, "seconds/eval": 9, **counts},
        {"step": 1, "nfe": 10, "seconds/step": 3, "branch/std": [0.2, None], **counts},
        {
            "step": 2,
            "nfe": 20,
            "eval/reward": 2,
            "eval/judge": None,
            "seconds/step": 12,
            "seconds/eval": 8,
            "branch/std": [0.4, None],
            **counts,
        },
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = condense(tmp_path, "mine", "key")
    assert (small.contender, small.seed, small.made_by, small.trained_on) == (
        "mine",
        4,
        "0.1 abcdef012345-dirty",
        ["reward"],
    )
    assert [(p.step, p.nfe, p.seconds) for p in small.points] == [(0, 0, 0), (2, 20, 7)]
    assert small.points[1].held_out == {"reward": 2, "judge": None}
    assert small.spread == [pytest.approx(0.3), None]


def test_the_page_says_who_is_better_and_who_cannot_be_told_apart(tmp_path):
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(4):
        base = 0.7 + rng.normal() / 50
        runs += [
            result("plain", seed, 0.5, 0.6, base),
            result("good", seed, 0.5, 0.7, base + 0.1 + rng.normal() / 500, nfe=500),
            result("same", seed, 0.5, 0.6, base + (-1) ** seed * 0.03),
        ]
    page = write_page(runs, tmp_path, "three of them", 'tempflow compare "plain x=<1>"').read_text()
    for contender, scorer, verdict in (
        ("good", "judge", "better"),
        ("good", "reward", "better"),
        ("same", "judge", "not distinguishable"),
        ("same", "reward", "not distinguishable"),
    ):
        row = page.partition(f'<th scope="row">{contender}</th><td>{scorer}</td>')[2].partition("</tr>")[0]
        assert f">{verdict}</td>" in row
    assert "x=&lt;1&gt;" in page
    assert "<script" not in page
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "judge-nfe.png",
        "judge-seconds.png",
        "judge-step.png",
        "reward-nfe.png",
        "reward-seconds.png",
        "reward-step.png",
        "spread.png",
    ]


def test_the_others_are_compared_with_the_base_that_was_named(tmp_path):
    runs = [result(name, seed, 0.5, last) for seed in (0, 1) for name, last in (("a", 0.6), ("b", 0.7), ("c", 0.8))]
    page = write_page(runs, tmp_path, "three", "tempflow compare", base="b").read_text()
    assert "Against b, seed by seed" in page
    rows = [page.partition(f'<th scope="row">{name}</th><td>judge</td>')[2].partition("</tr>")[0] for name in "ac"]
    assert ["\u22120.100" in rows[0], "+0.100" in rows[1]] == [True, True]


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (31, 2.042), (61, 2.000)])
def test_the_interval_over_seeds_is_students(seeds, quantile):
    """The quantiles are those of printed tables, for one degree of freedom less than there are seeds."""
    differences = np.random.default_rng(seeds).normal(size=seeds)
    standard_error = differences.std(ddof=1) / np.sqrt(seeds)
    assert half_interval(differences) / standard_error == pytest.approx(quantile, abs=5e-4)
    assert half_interval([0.5, 0.5]) == 0


def test_one_run_alone_makes_a_page_with_the_targets_that_were_asked_for(tmp_path):
    runs = [result("only", 0, 0.5, 0.6, 0.8)]
    page = write_page(runs, tmp_path, "alone", "tempflow compare only", targets=[0.55, 0.9]).read_text()
    assert "seed by seed" not in page
    assert '<th scope="col">0.550</th><th scope="col">0.900</th>' in page
    assert "<td>500<br><small>12 / 24</small></td><td>–</td>" in page


def test_contenders_that_gained_nothing_have_no_targets(tmp_path):
    runs = [result("a", 0, 0.5, 0.5), result("b", 0, 0.5, 0.4)]
    page = write_page(runs, tmp_path, "two", "tempflow compare").read_text()
    assert '<th scope="col">end</th></tr>' in page
