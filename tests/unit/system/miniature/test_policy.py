"""What the policy's rounds of training see as captions."""

import numpy as np
import pytest

from system.miniature.build.training.data import draw_scenes
from system.miniature.build.training.policy import captions_of
from system.miniature.world import caption

SCENES = draw_scenes(4000, np.random.default_rng(0), relation_every=2)
CAPTIONS = [caption(scene) for scene in SCENES]


def test_captions_are_true_unless_asked_otherwise() -> None:
    assert captions_of(SCENES, 0.0, np.random.default_rng(1)) == CAPTIONS


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_of_wrong_captions(share: float) -> None:
    captions = captions_of(SCENES, share, np.random.default_rng(1))
    wrong = np.mean([text != right for text, right in zip(captions, CAPTIONS, strict=True)])
    # Five standard errors; one in two hundred of the other scenes has the same caption by chance.
    assert abs(wrong - share) < 5 * (share * (1 - share) / len(SCENES)) ** 0.5 + 0.005 * share


def test_a_wrong_caption_belongs_to_another_scene_of_the_set() -> None:
    assert set(captions_of(SCENES, 0.5, np.random.default_rng(1))) <= set(CAPTIONS)
