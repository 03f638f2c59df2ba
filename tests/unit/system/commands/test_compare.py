"""`tempflow compare`: equal budgets, a page, and finished runs that are not run again."""

import json

import yaml

BUDGET = 1500


def test_contenders_get_their_budget_and_finished_runs_are_not_run_again(recipe, in_process, tmp_path):
    text = yaml.safe_load(recipe.read_text())
    text["scorers"].append({"name": "watched", "scorer": "jpeg_size", "weight": 0, "num_cpus": 0.1})
    recipe.write_text(yaml.safe_dump(text))
    images = "'plan={name: samples, seeds: 6}' advantage.group=prompt 'objective={name: nft}' name=nft"
    contenders = [str(recipe), f"{recipe} {images}"]
    command = [
        "compare",
        *contenders,
        "--seeds",
        "1",
        "--budget",
        str(BUDGET),
        "--evals",
        "2",
        "--output",
        "out",
        "--local",
    ]
    done = in_process(*command)
    assert done.returncode == 0, done.stderr
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert set(results) == {"tiny-seed0", "nft-seed0"}
    for result in results.values():
        last = result["points"][-1]
        assert 0.7 * BUDGET < last["nfe"] < 1.3 * BUDGET
        assert last["held_out"].keys() == {"size", "watched"}
    assert results["nft-seed0"]["spread"][-1] > 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "held-out watched" in page.lower()

    changed = results["nft-seed0"]
    changed["points"][-1]["held_out"]["watched"] = 123.0
    (tmp_path / "out" / "nft-seed0.json").write_text(json.dumps(changed))
    again = in_process(*command)
    assert again.returncode == 0, again.stderr
    assert "1 of 2" not in again.stdout
    assert "123.000" in (tmp_path / "out" / "compare.html").read_text()


def test_a_wrong_contender_stops_the_comparison_before_anything_runs(recipe, in_process, tmp_path):
    done = in_process("compare", str(recipe), f"{recipe} learner.lrr=1 name=other", "--output", "out")
    assert done.returncode == 2
    assert "did you mean `lr`" in done.stderr
    assert not (tmp_path / "out" / "runs").exists()


def test_a_base_that_is_no_contender_is_refused_before_anything_runs(recipe, in_process, tmp_path):
    done = in_process("compare", str(recipe), "--base", "other", "--output", "out", "--local")
    assert done.returncode == 2
    assert "--base: no contender is named `other`; name one of tiny" in done.stderr
    assert not (tmp_path / "out").exists()
