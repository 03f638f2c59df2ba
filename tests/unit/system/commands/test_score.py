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
        ([tmp_path / "nowhere.png"], ["x"], "size", r"nowhere\.png` cannot be read \(No such file or directory:"),
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


class Judge:
    """A groupwise scorer with sub-scores that reads rows: the place among the images, and the column `n`."""

    columns = ("n",)
    groupwise = True

    def __call__(self, images_NHWC, prompts, rows):
        return {"score": np.arange(len(prompts)), "n": [row["n"] for row in rows]}


def test_rows_and_sub_scores_and_all_images_of_a_prompt_are_a_group(pool, image):
    scorers = chosen_scorers(pool, [f"{__name__}:Judge"])
    table = shown(run_score([image] * 3, ["x", "y", "x"], scorers, ['{"n": 4}', '{"n": 5}', '{"n": 6}']))
    head, *lines = [line.split()[1::2] for line in table.splitlines() if ".png" in line or "image" in line]
    assert head[1:] == ["judge", "judge.score", "judge.n"]
    assert [line[1:] for line in lines] == [
        ["0.0000", "0.0000", "4.0000"],
        ["0.0000", "0.0000", "5.0000"],
        ["1.0000", "1.0000", "6.0000"],
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"n": 4'], r"--row `\{\"n\": 4`: its row is not JSON"),
        (["[4]"], "its row is not a JSON object"),
        (['{"m": 4}'], r"scorer `judge` cannot score `\S+noise\.png`: its row has no `n`; see --row"),
        (['{"n": 4}'] * 2, "2 rows for 1 images"),
    ],
)
def test_mistakes_in_rows(pool, image, rows, message):
    with pytest.raises(UserError, match=message):
        run_score([image], ["x"], chosen_scorers(pool, [f"{__name__}:Judge"]), rows)
