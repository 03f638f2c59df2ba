"""Reward models against their own packages: golden numbers that tests/golden/reward_models/make.py writes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, CLIPConfig, CLIPModel

from services.base.errors import UserError
from services.scoring.loaded import LoadedScorer
from services.scoring.open_clip import to_transformers
from services.scoring.scorer import check_scorer
from services.scoring.settings import ScorerSettings
from tests.helpers.paths import ROOT
from tests.helpers.tiny_rewards import (
    AESTHETIC_WIDTH,
    CASES,
    bert_tokenizer,
    clip_config,
    clip_shapes,
    fill,
    head_shapes,
    picture,
    save,
    save_processors,
)

GOLDEN = json.loads((ROOT / "tests" / "golden" / "reward_models" / "golden.json").read_text())
NAMES = ("clip", "hpsv2", "aesthetic", "imagereward")
WITH_WEIGHTS = {"hpsv2": "model", "aesthetic": "head", "imagereward": "model"}
"""Scorers with a file of weights of their own, and the option that names it."""


def save_clip(folder, projection, activation):
    """The tiny CLIP in transformers' layout."""
    model = CLIPModel(CLIPConfig(**clip_config(projection, activation)))
    model.load_state_dict(to_transformers(fill(clip_shapes(projection))))
    model.save_pretrained(folder)
    save_processors(folder)
    return str(folder)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The options of each scorer."""
    weights = tmp_path_factory.mktemp("weights")
    shapes = {name: torch.empty(shape) for name, shape in GOLDEN["imagereward_shapes"].items()}
    bert = tmp_path_factory.mktemp("bert")
    bert_tokenizer(bert).save_pretrained(bert)
    openai, wide, laion = (tmp_path_factory.mktemp(name) for name in ("openai", "wide", "laion"))
    (laion / "config.json").write_text(json.dumps({"model_type": "clip", **clip_config(64, "gelu")}))
    save_processors(laion)
    return {
        "clip": {"model": save_clip(openai, 64, "quick_gelu")},
        "hpsv2": {"model": save(clip_shapes(64), weights / "hps.safetensors"), "base": str(laion)},
        "aesthetic": {
            "head": save(head_shapes(AESTHETIC_WIDTH), weights / "head.safetensors"),
            "model": save_clip(wide, AESTHETIC_WIDTH, "quick_gelu"),
        },
        "imagereward": {"model": save(shapes, weights / "imagereward.safetensors"), "tokenizer": str(bert)},
    }


def settings_of(name, options, **changes):
    changed = {**options[name], "batch_size": 3, "device": "cpu", **changes}
    return ScorerSettings(name=name, scorer=name, options=changed)


@pytest.fixture(scope="module", params=NAMES)
def scorer(request, options):
    check_scorer(settings_of(request.param, options))
    return request.param, LoadedScorer(settings_of(request.param, options))


def test_equals_the_package(scorer):
    name, loaded = scorer
    scores = [loaded.score(picture(case)[None], [case["prompt"]]).score_N[0] for case in CASES]
    np.testing.assert_allclose(scores, GOLDEN[name], rtol=0, atol=2e-5)
    assert np.ptp(scores) > 1e-3, "the cases differ"


def test_a_score_does_not_depend_on_its_neighbours(scorer):
    _, loaded = scorer
    images = np.stack([picture({"seed": seed, "height": 64, "width": 64}) for seed in range(4)])
    prompts = ["a fox", "a much longer prompt " * 9, "", "a dog"]
    together = loaded.score(images, prompts).score_N
    alone = [loaded.score(images[i : i + 1], prompts[i : i + 1]).score_N[0] for i in range(4)]
    assert together.tolist() == alone
    assert loaded.score(images[:0], []).score_N.shape == (0,)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_that_do_not_fit_are_named(name, options, tmp_path):
    option = WITH_WEIGHTS[name]
    state = load_file(options[name][option])
    key = max(key for key in state if "layers" in key or "resblocks" in key)
    file = str(tmp_path / "other.safetensors")
    for change, message in (
        ({}, f"scorer {name}: `.*` lacks 1 weights"),
        ({key: state[key], "more": torch.zeros(1)}, "has unexpected 1 weights, such as more"),
        ({key: torch.zeros(3, 5)}, r"has the shape \(3, 5\)"),
    ):
        save_file({**{k: v for k, v in state.items() if k != key}, **change}, file)
        with pytest.raises(UserError, match=message):
            LoadedScorer(settings_of(name, options, **{option: file}))


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_a_file_that_is_missing_or_no_safetensors_is_named_before_anything_starts(name, options):
    for file, message in (
        ("/nowhere/model.pt", "is not a .safetensors file"),
        ("/nowhere/model.safetensors", "there is no file"),
    ):
        with pytest.raises(UserError, match=f"scorer {name}: .*{message}"):
            check_scorer(settings_of(name, options, **{WITH_WEIGHTS[name]: file}))


def test_a_model_of_another_kind_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="of type bert; give a CLIP or SigLIP model"):
        LoadedScorer(ScorerSettings(name="clip", scorer="clip", options={"model": str(tmp_path), "device": "cpu"}))
