"""The script that draws what each rule of reward.combine does, on made-up runs."""

import json

import pytest
from PIL import Image

from docs.combining import LARGE, RECIPE, RULES, SMALL, draw
from system.recipe.load import load_config
from system.report.data import read_run


@pytest.mark.parametrize("rule", RULES)
def test_the_recipe_has_two_rewards_that_differ_by_their_scale(rule):
    config = load_config("shapes", [*RECIPE, f"reward.combine={rule}"])
    assert [(scorer.name, scorer.weight, scorer.scale) for scorer in config.scorers] == [
        (SMALL, 1.0, 1.0),
        (LARGE, 1.0, 100.0),
    ]


def test_the_picture_is_drawn_from_the_metrics_of_runs(tmp_path):
    runs = {}
    for rule in RULES:
        lines = [{"step": 0, f"eval/{SMALL}": 1.0, f"eval/{LARGE}": -1.0}]
        lines += [{"step": 1, f"reward/{SMALL}/share": 0.5, f"eval/{SMALL}": 1.1, f"eval/{LARGE}": -1.1}]
        (tmp_path / rule).mkdir()
        (tmp_path / rule / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs[rule] = read_run(tmp_path / rule)
    draw(tmp_path / "picture.png", runs)
    width, height = Image.open(tmp_path / "picture.png").size
    assert width > 3 * height
