"""What reward models take, against the published sizes of their models."""

import json

import pytest

from actors.policy.settings import PolicySettings
from services.scoring.settings import ScorerSettings
from system.capacity.scorers import reward_of

CLIP = "openai/clip-vit-large-patch14"
POSITIONS = 77 + 257
"""The tables of positions, int64, which are no parameters: 77 tokens of text, and 16 x 16 patches and one more."""


def reward(scorer, size_HW=(512, 512), **options):
    policy = PolicySettings(model="somewhere", height=size_HW[0], width=size_HW[1])
    return reward_of(ScorerSettings(name=scorer, scorer=scorer, options=options), policy)


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


@pytest.mark.parametrize(
    ("scorer", "options", "billions", "bytes_each"),
    [
        ("clip", {"model": "google/siglip2-so400m-patch14-384"}, 1.136, 4),
        ("geneval", {}, 0.069 + 0.428, 4),
        ("geneval2", {}, 8.77, 2),
    ],
)
def test_other_models_have_the_published_sizes(scorer, options, billions, bytes_each):
    """Of SigLIP 2 and Qwen3-VL, those on the hub; of Mask2Former with Swin-S, that of table 4 in arXiv 2112.01527."""
    assert reward(scorer, **options).num_bytes == pytest.approx(billions * 1e9 * bytes_each, rel=0.005)


def test_imagereward_has_the_size_of_its_published_file():
    """ImageReward.pt has 1.79 GB, and more than the score needs: two projections and BLIP's tables of positions."""
    assert reward("imagereward", model="reward.safetensors").num_bytes == pytest.approx(1.79e9, rel=0.02)


def test_the_detector_of_geneval_does_the_published_work():
    """313 G multiply-adds (table 4 of arXiv 2112.01527) for an average image of COCO, whose shorter edge becomes 800
    pixels: here 640 x 480, which is near the average. A CLIP sees one object.
    """
    one = reward("geneval", (480, 640)).per_image.flops - reward("clip", model=CLIP).per_image.flops
    assert one / 2e9 == pytest.approx(313, rel=0.1)
    upright = reward("geneval", (640, 480)).per_image.flops - reward("clip", model=CLIP).per_image.flops
    assert upright == pytest.approx(one, rel=0.03)
    assert reward("geneval", (512, 512)).per_image.flops == reward("geneval", (1024, 1024)).per_image.flops


def test_a_question_of_geneval_2_reads_the_image_again():
    """By hand: 1024 patches of 16 pixels, four of which are a token, and a question, padded to a multiple of 64: 320
    tokens of 7.57e9 weights without the embedding, and 1024 patches of 0.58e9.
    """
    small = reward("geneval2")
    assert small.per_image.flops == pytest.approx(7.5 * 2 * (320 * 7.57e9 + 1024 * 0.58e9), rel=0.01)
    large = reward("geneval2", (1024, 1024))
    assert large.per_image.flops / small.per_image.flops == pytest.approx(1088 / 320, rel=0.1)
    assert reward("geneval2", dtype="fp32").num_bytes == 2 * small.num_bytes


def test_imagereward_reads_197_patches_and_35_tokens():
    """By hand, in multiply-adds: each of 24 vision layers has 12 d² weights for each of 197 tokens and two products of
    attention; each of 12 text layers has 10 e² weights for each of 35 tokens, and keys and values of the 197.
    """
    d, e, patches, tokens = 1024, 768, 197, 35
    vision = 24 * (12 * d**2 * patches + 2 * patches**2 * d)
    text = 12 * ((4 + 2 + 8) * e**2 * tokens + 2 * d * e * patches + 2 * tokens * (tokens + patches) * e)
    assert reward("imagereward", model="r").per_image.flops == pytest.approx(2 * (vision + text), rel=0.01)


def test_a_folder_says_its_own_sizes(tmp_path):
    """A SigLIP with one layer in each encoder: 16 patches and 8 tokens."""
    tower = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {
        "model_type": "siglip",
        "text_config": tower | {"vocab_size": 50000, "max_position_embeddings": 8},
        "vision_config": tower | {"image_size": 32, "patch_size": 8},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = reward("clip", model=str(tmp_path), batch_size=2)
    assert found.activation_bytes == 2 * 4 * 2 * 16 * (16 + 4 * 8)
    assert found.num_bytes > 4 * 50000 * 8


def test_what_is_not_known_is_not_counted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip_2"}))
    assert not reward("clip", model=str(tmp_path)).known
    assert not reward("geneval", url="http://127.0.0.1:8000").known
    assert not reward("geneval", detector="some/detector").known
    assert not reward("ocr").known
