"""`tempflow score` and `tempflow serve --print`, without Ray."""

import io

import numpy as np
import pytest
import yaml
from PIL import Image
from ray.serve.schema import ServeDeploySchema
from rich.console import Console

from services.errors import UserError
from services.scoring.jpeg_size import JpegSize
from services.serving.settings import PoolSettings
from system.config import load_pool
from system.score_command import chosen_scorers, run_score
from system.serve_command import check_pool, serve_config


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


def test_the_printed_config_is_one_that_serve_deploy_accepts(pool):
    config = ServeDeploySchema.model_validate(yaml.safe_load(serve_config(pool)))
    application = config.applications[0]
    assert (application.name, application.route_prefix) == ("pool", "/")
    assert PoolSettings.model_validate(application.args) == pool


def test_a_pool_that_others_can_reach_needs_a_token(pool, tmp_path, monkeypatch):
    monkeypatch.delenv("TEMPFLOW_TOKEN", raising=False)
    check_pool(pool)
    everywhere = pool.serve.model_copy(update={"host": "0.0.0.0"})
    open_pool = pool.model_copy(update={"serve": everywhere})
    with pytest.raises(UserError, match="token"):
        check_pool(open_pool)
    monkeypatch.setenv("TEMPFLOW_TOKEN", "secret")
    check_pool(open_pool)
    empty = tmp_path / "token"
    empty.write_text("\n")
    with pytest.raises(UserError, match="no token"):
        check_pool(pool.model_copy(update={"serve": pool.serve.model_copy(update={"token_file": str(empty)})}))
