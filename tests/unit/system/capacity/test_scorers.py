"""What reward models take, against the published sizes of their models."""

import json

import pytest

from services.scoring.settings import ScorerSettings
from system.capacity.scorers import reward_of

POSITIONS = 77 + 257
"""The tables of positions, int64, which are no parameters: 77 tokens of text, and 16 x 16 patches and one more."""


def reward(scorer, **options):
    return reward_of(ScorerSettings(name=scorer, scorer=scorer, options=options))


@pytest.mark.parametrize(
    ("scorer", "options", "parameters"),
    [
        ("clipscore", {}, 427_616_513),
        ("aesthetic", {"head": "head.safetensors"}, 427_616_513),
        ("hpsv2", {"model": "hps.safetensors"}, 986_109_441),
        ("clip", {"model": "openai/clip-vit-large-patch14"}, 427_616_513),
    ],
)
def test_clip_models_have_their_published_numbers_of_parameters(scorer, options, parameters):
    found = reward(scorer, **options)
    assert found.known
    assert found.num_bytes == 4 * parameters + 8 * POSITIONS


def test_what_is_not_known_is_not_counted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    assert not reward("clip", model=str(tmp_path)).known
    assert not reward("imagereward", model="reward.safetensors").known
    assert not reward("geneval").known
