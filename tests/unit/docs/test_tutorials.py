"""The tutorials about bringing one's own: each page runs, and does what it promises."""

import re
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image

from system.recipe.load import load_config
from tests.helpers.run_folders import metrics
from tests.helpers.tutorial import run_tutorial


def experience(run: Path) -> dict[str, list]:
    return ds.dataset(run / "experience").to_table().to_pydict()


def test_own_prompts(tmp_path, in_process):
    printed = run_tutorial("your-own-prompts", tmp_path, in_process)
    run = tmp_path / "runs" / "own-prompts"
    ours = re.findall(r'"prompt": "(.+?)"', (tmp_path / "prompts" / "train.jsonl").read_text())
    trained = experience(run)["prompt"]
    assert set(trained) <= set(ours)
    assert len(set(trained)) == 4, "two steps of two prompts, none twice in an epoch"
    last = metrics(run)[-1]
    assert {"eval/pickscore/ring", "eval/pickscore/cross"} <= last.keys()
    assert last["eval/pickscore"] == pytest.approx((last["eval/pickscore/ring"] + last["eval/pickscore/cross"]) / 2)
    assert "2 prompts, one image each" in printed


def test_own_model(tmp_path, in_process):
    run_tutorial("your-own-model", tmp_path, in_process)
    run = tmp_path / "runs" / "own-model"
    assert load_config(str(run)).policy.model == "my-model"
    (before,), (after,) = ((tmp_path / name).iterdir() for name in ("before", "after"))
    images = [Image.open(path).tobytes() for path in (before, after)]
    assert images[0] != images[1], "the adapter changes the image"
    assert Image.open(tmp_path / "diffusers.png").size == (64, 64)


def test_own_reward(tmp_path, in_process):
    printed = run_tutorial("your-own-reward", tmp_path, in_process)
    run = tmp_path / "runs" / "bright"
    log = experience(run)
    assert log["reward/brightness"] == log["reward"]
    assert all(0 < reward < 2 for reward in log["reward"]), "twice the mean brightness"
    second = [reward for reward, step in zip(log["reward"], log["step"], strict=True) if step == 1]
    last = metrics(run)[-1]
    assert last["reward/brightness/mean"] == pytest.approx(sum(second) / len(second))
    assert {"eval/brightness", "eval/contrast", "eval/pickscore"} <= last.keys()
    assert "eval/judge" not in last
    assert "contrast.spread" in printed


def test_own_method(tmp_path, in_process):
    run_tutorial("your-own-method", tmp_path, in_process)
    run = tmp_path / "runs" / "own-method"
    assert load_config(str(run)).advantage.leaves == "my_method:gains"
    log = experience(run)
    rewards: dict[tuple[int, int], list[float]] = {}
    advantages: dict[tuple[int, int], float] = {}
    for step, seed, reward, advantage in zip(
        log["branch_step"], log["seed"], log["reward/pickscore"], log["advantage"], strict=True
    ):
        rewards.setdefault((step, seed), []).append(reward)
        advantages[step, seed] = advantage
    for step in range(5):
        gains = np.array([rewards[step, seed][1] - rewards[step, seed][0] for seed in range(6)])
        wanted = (gains - gains.mean()) / (gains.std() + 1e-4)
        assert [advantages[step, seed] for seed in range(6)] == pytest.approx(wanted)


@pytest.mark.slow  # `tempflow plan` counts Stable Diffusion 3.5
def test_from_flow_grpo(tmp_path, in_process):
    printed = run_tutorial("from-flow-grpo", tmp_path, in_process)
    assert "It fits" in printed
    config = load_config(str(tmp_path / "runs" / "converted"))
    assert (config.method, config.plan.name, config.advantage.std) == ("flow_grpo", "chain", "batch")
    assert (config.objective.kl, config.learner.micro_batch, config.seed) == (0.01, 9, 42)
    assert 0 < metrics(tmp_path / "runs" / "converted")[-1]["reward/pickscore/mean"] < 3
