"""The tutorials about one's own prompts, model, reward and method: each page runs, and does what it promises."""

import re
from math import sqrt
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from PIL import Image

from system.recipe.load import load_config
from tests.helpers.run_folders import metrics
from tests.helpers.tutorial import run_tutorial


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def experience(run: Path) -> dict[str, list]:
    return ds.dataset(run / "experience").to_table().to_pydict()


def test_own_prompts(folder):
    printed = run_tutorial("your-own-prompts", folder)
    run = folder / "runs" / "own-prompts"
    ours = re.findall(r'"prompt": "(.+?)"', (folder / "prompts" / "train.jsonl").read_text())
    trained = experience(run)["prompt"]
    assert set(trained) <= set(ours)
    assert len(set(trained)) == 4, "two steps of two prompts, none twice in an epoch"
    last = metrics(run)[-1]
    assert {"eval/pickscore/ring", "eval/pickscore/cross"} <= last.keys()
    assert last["eval/pickscore"] == pytest.approx((last["eval/pickscore/ring"] + last["eval/pickscore/cross"]) / 2)
    assert "2 prompts, one image each" in printed


def test_own_model(folder):
    run_tutorial("your-own-model", folder)
    run = folder / "runs" / "own-model"
    assert load_config(str(run)).policy.model == "my-model"
    (before,), (after,) = ((folder / name).iterdir() for name in ("before", "after"))
    images = [Image.open(path).tobytes() for path in (before, after)]
    assert images[0] != images[1], "the adapter changes the image"
    assert Image.open(folder / "diffusers.png").size == (64, 64)


def test_own_reward(folder):
    printed = run_tutorial("your-own-reward", folder)
    run = folder / "runs" / "bright"
    log = experience(run)
    assert log["reward/brightness"] == log["reward"]
    assert all(0 < reward < 2 for reward in log["reward"]), "twice the mean brightness"
    last = metrics(run)[-1]
    assert last["reward/brightness/mean"] == pytest.approx(sum(log["reward"][-24 * 2 :]) / 48, abs=1)
    assert {"eval/brightness", "eval/contrast", "eval/pickscore"} <= last.keys()
    assert "eval/judge" not in last
    assert "contrast.spread" in printed


def test_own_method(folder):
    run_tutorial("your-own-method", folder)
    run = folder / "runs" / "own-method"
    assert load_config(str(run)).advantage.leaves == "my_method:ranks"
    spread = sqrt(sum((i / 5 - 0.5) ** 2 for i in range(6)) / 6)
    wanted = {round((i / 5 - 0.5) / (spread + 1e-4), 6) for i in range(6)}
    assert {round(value, 6) for value in experience(run)["advantage"]} == wanted
