"""The judge on renderings, altered captions and spoiled images."""

import numpy as np
import pytest

from system.miniature.build.training.data import draw_scenes, render_scenes
from system.miniature.judge import ATTRIBUTES, Judge
from system.miniature.world import BACKGROUNDS, alterations, caption, paint, parse, place

CAPTION = "a large red ring left of a small blue square on a white background"


@pytest.fixture(scope="module")
def rendered():
    rng = np.random.default_rng(0)
    scenes = draw_scenes(150, rng) + draw_scenes(150, rng, held_out=True)
    return scenes, render_scenes(scenes, rng)


def test_renderings_are_right(rendered) -> None:
    scenes, images = rendered
    score = Judge()(images, [caption(scene) for scene in scenes])
    assert score.dtype == np.float64
    assert score.mean() >= 0.99


@pytest.mark.parametrize("attribute", ["background", "size", "colour", "shape", "relation", "swap"])
def test_altered_captions_are_rejected(rendered, attribute: str) -> None:
    scenes, images = rendered
    rows = [(i, s) for i, scene in enumerate(scenes) for s in alterations(scene).get(attribute, [])[:2]]
    score = Judge()(images[[i for i, _ in rows]], [caption(s) for _, s in rows])
    assert 1 - score.mean() >= 0.98


def test_verdicts_name_the_wrong_attribute() -> None:
    image = render_scenes([parse(CAPTION)], np.random.default_rng(0))
    wrong = {
        "background": CAPTION.replace("white", "grey"),
        "shape": CAPTION.replace("ring", "cross"),
        "size": CAPTION.replace("small", "large"),
        "relation": CAPTION.replace("left of", "above"),
    }
    for attribute, text in wrong.items():
        verdict = Judge().verdicts(image, [text])[0]
        assert not verdict[attribute]
        assert set(verdict) == set(ATTRIBUTES)
    assert all(Judge().verdicts(image, [CAPTION])[0].values())


def test_missing_and_extra_objects_are_wrong() -> None:
    both = place(parse(CAPTION), np.random.default_rng(0))
    one = paint(both[:1], BACKGROUNDS["white"])
    two = paint(both, BACKGROUNDS["white"])
    single = "a large red ring on a white background"
    score = Judge()(np.stack([one, one, two, two]), [single, CAPTION, CAPTION, single])
    assert score.tolist() == [1, 0, 1, 0]


def test_malformed_caption_is_nan() -> None:
    images = np.zeros((2, 64, 64, 3), np.uint8)
    score = Judge()(images, ["two cats", "a small red ring on a black background"])
    assert np.isnan(score[0])
    assert score[1] == 0


def test_wrong_image_shape_raises() -> None:
    with pytest.raises(ValueError, match="uint8 images of shape"):
        Judge()(np.zeros((1, 32, 32, 3), np.uint8), [CAPTION])
