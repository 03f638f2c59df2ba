"""HPSv3 against the package `hpsv3` itself: golden numbers that tests/golden/hpsv3/make.py writes."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from services.base.errors import UserError
from services.scoring.hpsv3 import CHECKPOINT_FILE, HPSv3
from services.scoring.scorer import check_scorer
from services.scoring.settings import ScorerSettings
from tests.helpers.paths import ROOT

FOLDER = ROOT / "tests" / "golden" / "hpsv3"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())


def scorer(**options) -> HPSv3:
    return HPSv3(**{"model": str(FOLDER), "base": str(FOLDER / "base"), "dtype": "fp32", "device": "cpu", **options})


@pytest.fixture(scope="module")
def hpsv3() -> HPSv3:
    return scorer(batch_size=2)


def image_of(case: dict) -> np.ndarray:
    """The image of a golden case: noise in blocks of 16 pixels."""
    blocks = np.random.default_rng(case["seed"]).integers(
        0, 256, (case["height"] // 16, case["width"] // 16, 3), np.uint8
    )
    return blocks.repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["seed"]))
def test_equals_the_package(case, hpsv3):
    gauss_N2 = hpsv3.gaussians(image_of(case)[None], [case["prompt"]])
    np.testing.assert_allclose(gauss_N2, [case["gauss"]], rtol=0, atol=1e-5)


def test_a_score_does_not_depend_on_its_neighbours(hpsv3):
    square = [case for case in GOLDEN if case["height"] == case["width"]]
    images = np.stack([image_of(case) for case in square * 2])[:3]
    prompts = [square[0]["prompt"], square[1]["prompt"] * 20, square[0]["prompt"]]
    together = hpsv3(images, prompts)
    alone = [hpsv3(images[i : i + 1], prompts[i : i + 1])[0] for i in range(3)]
    assert together.tolist() == alone
    assert hpsv3(images[:0], []).shape == (0,)


def test_bf16_is_near(hpsv3):
    images, prompts = image_of(GOLDEN[0])[None], [GOLDEN[0]["prompt"]]
    assert scorer(dtype="bf16", batch_size=1)(images, prompts) == pytest.approx(hpsv3(images, prompts), abs=0.1)


def test_a_missing_and_an_unexpected_weight_are_errors(tmp_path):
    state = load_file(FOLDER / CHECKPOINT_FILE)
    name = "model.layers.0.mlp.up_proj.weight"
    for change, message in (
        ({}, "lacks 1 weights"),
        ({name: state[name], "rm_head.6.bias": state[name].clone()}, "unexpected 1"),
    ):
        save_file({**{k: v for k, v in state.items() if k != name}, **change}, tmp_path / CHECKPOINT_FILE)
        with pytest.raises(UserError, match=message):
            scorer(model=str(tmp_path))


def test_what_is_not_there_is_named_before_anything_starts(tmp_path):
    base = str(FOLDER / "base")
    for options, message in (
        ({"base": "/nowhere"}, "there is no folder `/nowhere`"),
        ({"base": base, "model": str(tmp_path)}, f"has no {CHECKPOINT_FILE}"),
        ({"base": base, "model": str(FOLDER), "instruction": "/nowhere.txt"}, "no instruction"),
    ):
        with pytest.raises(UserError, match=message):
            check_scorer(ScorerSettings(name="hpsv3", scorer="hpsv3", options=options))
    shutil.copy(FOLDER / CHECKPOINT_FILE, tmp_path / "weights.safetensors")
    options = {"base": base, "model": str(tmp_path / "weights.safetensors")}
    check_scorer(ScorerSettings(name="hpsv3", scorer="hpsv3", options=options))
