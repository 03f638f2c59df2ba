"""Diversity against the mean distance of all pairs, computed one by one."""

from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from services.base.errors import UserError
from services.base.paths import resolve_model
from services.scoring.loaded import LoadedScorer
from services.scoring.settings import ScorerSettings

MODEL = "package:system.miniature/assets/reward"


@pytest.fixture(scope="module")
def scorer():
    options = {"model": MODEL, "batch_size": 3, "device": "cpu"}
    return LoadedScorer(ScorerSettings(name="diversity", scorer="diversity", options=options))


def test_the_mean_is_the_mean_cosine_distance_of_all_pairs(scorer):
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    images[2:] = images[2:] // 4
    folder = resolve_model(MODEL)
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
        embedding_ND = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    distances = {
        (i, j): 1 - torch.cosine_similarity(embedding_ND[i], embedding_ND[j], dim=0).item()
        for i, j in combinations(range(4), 2)
    }
    scored = scorer.score(images, ["a cat"] * 4).score_N
    assert scored.mean() == pytest.approx(np.mean(list(distances.values())), abs=1e-6)
    assert scored[0] == pytest.approx(np.mean([distances[0, j] for j in (1, 2, 3)]), abs=1e-6)
    assert min(distances.values()) < 0.001 < 0.5 < max(distances.values())


def test_equal_images_have_none_and_one_image_has_no_score(scorer):
    images = np.full((5, 64, 64, 3), 90, np.uint8)
    assert scorer.needs.groupwise
    np.testing.assert_allclose(scorer.score(images, ["a"] * 5).score_N, 0, atol=1e-6)
    assert np.isnan(scorer.score(images[:1], ["a"]).score_N).all()


def test_a_missing_model_is_refused():
    from services.scoring.scorer import check_scorer

    with pytest.raises(UserError, match="scorer diversity: there is no folder"):
        check_scorer(ScorerSettings(name="d", scorer="diversity", options={"model": "/nowhere"}))
