"""The small HPSv3: its loss by hand, and its files through the scorer that loads the real one."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from system.miniature.build.data import draw_scenes, render_scenes
from system.miniature.build.hps import HpsTrainer, load_hps, ranking_loss, train_hps
from system.miniature.build.make import ASSETS, load_policy
from system.miniature.build.reward import GradedImages, Preferences
from system.miniature.world import caption

SCENES = draw_scenes(4, np.random.default_rng(0))
IMAGES = render_scenes(SCENES, np.random.default_rng(1))
PROMPTS = [caption(scene) for scene in SCENES]


def test_the_loss_of_certain_scores_is_that_of_their_difference():
    sure = torch.full((3,), -30.0)
    first, second = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0])
    loss = ranking_loss(torch.stack([first, sure], 1), torch.stack([second, sure], 1), torch.tensor([1.0, 1.0, 0.5]))
    by_hand = -functional.logsigmoid(torch.tensor([1.0, -1.0, 0.0])).mean()
    assert loss.item() == pytest.approx(by_hand.item())


def test_uncertainty_softens_a_wrong_order():
    torch.manual_seed(0)
    wrong, far = torch.tensor([[0.0, 2.0]] * 512), torch.tensor([[8.0, 2.0]] * 512)
    win = torch.ones(512)
    sure = ranking_loss(wrong - torch.tensor([0, 30.0]), far - torch.tensor([0, 30.0]), win)
    assert sure.item() == pytest.approx(8, abs=0.01)
    assert ranking_loss(wrong, far, win).item() > 8, "E[softplus] of a wide Gaussian lies above that of its mean"


def test_the_trained_files_score_as_in_training(tmp_path):
    torch.manual_seed(0)
    trainer = HpsTrainer()
    trainer.save(tmp_path)
    trainer.model.eval()
    trainer.head.eval()
    with torch.no_grad():
        own = trainer.gaussians(trainer.token_ids(PROMPTS), IMAGES)
    np.testing.assert_allclose(load_hps(tmp_path).gaussians(IMAGES, PROMPTS), own.numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def samples() -> GradedImages:
    grades = np.array([1.0, 1.0, 1 / 2, 5 / 6] * 4)
    return GradedImages(IMAGES[[0] * 16], [PROMPTS[0]] * 8 + [PROMPTS[1]] * 8, grades)


def test_pairs_are_of_one_caption_the_better_first_and_ties_both_right(samples, monkeypatch):
    monkeypatch.setattr("system.miniature.build.reward.MADE_PAIRS", 6)
    data = Preferences(load_policy(ASSETS)[0], samples, np.random.default_rng(0))
    near, far, ties, made = data.parts
    grade_P2 = samples.grade_N[data.pairs_P2[: made[0]]]
    for number in (*near, *far, *ties):
        first, second = data.pairs_P2[number]
        assert samples.prompts[first] == samples.prompts[second] == data.captions[number]
    np.testing.assert_allclose(grade_P2[near, 0] - grade_P2[near, 1], 1 / 6)
    assert (grade_P2[far, 0] - grade_P2[far, 1] > 1 / 6 + 1e-6).all()
    assert (grade_P2[ties] == 1).all()
    # Of one caption: four right images, two with one wrong attribute and two with three.
    assert (len(near), len(far), len(ties), len(made)) == (2 * 8, 2 * 12, 2 * 6, 6)
    assert (data.win_P[ties] == 0.5).all()
    assert (data.win_P[np.concatenate([near, far, made])] == 1).all()
    drawn = data.draw(20, np.random.default_rng(0))
    assert [np.isin(drawn, part).sum() for part in data.parts] == [8, 4, 4, 4]


def test_training_runs_and_writes_what_the_scorer_reads(samples, tmp_path, monkeypatch):
    monkeypatch.setattr("system.miniature.build.reward.MADE_PAIRS", 6)
    train_hps(load_policy(ASSETS)[0], samples, seed=0, steps=2, out=tmp_path)
    assert np.isfinite(load_hps(tmp_path)(IMAGES, PROMPTS)).all()


def test_the_assets_prefer_a_rendering_to_one_of_another_caption():
    scorer = load_hps(ASSETS / "hps")
    right = scorer(IMAGES, PROMPTS)
    assert (right > scorer(IMAGES, PROMPTS[1:] + PROMPTS[:1])).all()


def test_a_prompt_that_holds_the_token_of_an_image_has_no_score_and_its_neighbours_have():
    scorer = load_hps(ASSETS / "hps")
    alone = scorer(IMAGES[:1], PROMPTS[:1])
    np.testing.assert_array_equal(scorer(IMAGES[:2], [PROMPTS[0], "a <|image_pad|> red ring"]), [alone[0], np.nan])
    assert np.isnan(scorer(IMAGES[:1], ["<|image_pad|>"])).all()
