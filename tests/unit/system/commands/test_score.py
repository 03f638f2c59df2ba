"""`tempflow score`: which scorers it takes, what it prints, and what it refuses."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from services.base.errors import UserError
from services.scoring.jpeg_size import JpegSize
from services.serving.settings import PoolSettings
from system.commands.score import chosen_scorers, run_score
from system.recipe.load import load_pool


@pytest.fixture
def pool(tmp_path) -> PoolSettings:
    path = tmp_path / "pool.yaml"
    path.write_text(
        "scorers:\n- {name: size, scorer: jpeg_size, replicas: {min: 1, max: 4}}\n- {name: text, scorer: ocr}\n"
    )
    return load_pool(str(path))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return path


def shown(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_score_prints_each_scorer_of_the_recipe_or_one_by_name(pool, image):
    size = JpegSize()(np.asarray(Image.open(image))[None], ["x"])[0]
    assert f"{size:.4f}" in shown(run_score([image], ["x"], chosen_scorers(pool, ["size"])))
    assert f"{size:.4f}" in shown(run_score([image, image], ["x", "y"], chosen_scorers(pool, ["jpeg_size"])))
    assert [scorer.name for scorer in chosen_scorers(pool, None)] == ["size", "text"]


def test_mistakes_of_score(pool, image, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for images, prompts, scorer, message in (
        ([tmp_path / "nowhere.png"], ["x"], "size", r"nowhere\.png"),
        ([tmp_path / "text.png"], ["x"], "size", "none of PNG"),
        ([image, image, image], ["x", "y"], "size", "2 prompts for 3 images"),
        ([image], ["x"], "nothing", "neither built in"),
    ):
        with pytest.raises(UserError, match=message):
            run_score(images, prompts, chosen_scorers(pool, [scorer]))


def test_a_scorer_by_import_path_gets_a_name_that_it_may_have(monkeypatch, pool):
    monkeypatch.setattr("services.scoring.scorer.check_scorer", lambda scorer: None)
    for scorer, name in (
        ("my.rewards:Prompt", "scorer_prompt"),
        ("a:Sharp", "sharp"),
        ("a:_2D", "scorer_2d"),
        ("a:_", "scorer_"),
    ):
        assert [chosen.name for chosen in chosen_scorers(pool, [scorer])] == [name]
