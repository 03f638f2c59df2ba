"""What each encoding of images makes of scores, bytes and time. With `-s`, the figures are printed."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from actors.policy.families.family import to_uint8
from actors.policy.kernels import make_kernel
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import ode_plan
from actors.rollout.sampler import Sampler
from services.http.images import Encoding, decode_image, encode_image
from services.scoring.loaded import LoadedScorer
from services.scoring.pickscore import PickScore
from system.bench.gpu.tiny.parts import clip_tokenizer
from system.loop.prompts import prompts_of
from system.recipe.load import load_config

IMAGES, STEPS = 48, 10
MAX_PIXELS = 512 * 512
GRAIN_LEVELS = 8
"""The standard deviation of the noise that stands for the texture of a photo."""
Score = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, list[str]]:
    """Images that the miniature makes of its held-out prompts, (48, 64, 64, 3), and the prompts."""
    config = load_config("shapes")
    prompts = prompts_of(config.data, config.data.heldout)
    texts = [prompts[row] for row in range(IMAGES)]
    family = Policy(config.policy, seed=0).family
    sigmas = family.sigmas(STEPS)
    sampler = Sampler(family, sigmas, make_kernel(FlowSDESettings(), sigmas), micro_batch=24)
    front = sampler(ode_plan(STEPS), [(0, row) for row in range(IMAGES)], range(IMAGES), family.encode(texts))
    return to_uint8(family.decode(front.leaf_MZ)).numpy(), texts


@pytest.fixture(scope="module")
def large(held_out) -> np.ndarray:
    """The first 16 images at 512 by 512 pixels, with grain."""
    edges = (512, 512)
    smooth = [np.asarray(Image.fromarray(image).resize(edges, Image.Resampling.BICUBIC)) for image in held_out[0][:16]]
    grain = GRAIN_LEVELS * np.random.default_rng(0).standard_normal((16, *edges, 3))
    return np.clip(np.stack(smooth) + grain, 0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def tiny_pickscore(tmp_path_factory) -> PickScore:
    """PickScore of random weights that sees 224 by 224 pixels, as the real one."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pickscore")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 514, "max_position_embeddings": 16, "bos_token_id": 512, "eos_token_id": 513}
    vision = tower | {"image_size": 224, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return PickScore(str(folder), device="cpu")


def sent(images_NHWC: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Images as they arrive. Prints what sending them takes."""
    started = time.process_time()
    data = [encode_image(image, encoding) for image in images_NHWC]
    encoded = time.process_time()
    arrived = np.stack([decode_image(one, MAX_PIXELS) for one in data])
    decoded = time.process_time()
    count, levels = len(images_NHWC), np.abs(arrived.astype(int) - images_NHWC)
    encode_ms, decode_ms = (1000 * spent / count for spent in (encoded - started, decoded - encoded))
    print(
        f"{encoding}, {images_NHWC.shape[1]} px: {sum(map(len, data)) / count / 1000:.1f} kB, CPU {encode_ms:.2f} ms "
        f"to encode, {decode_ms:.2f} ms to decode; levels: mean {levels.mean():.2f}, most {levels.max()}"
    )
    return arrived


@pytest.mark.parametrize("encoding", [Encoding.PNG, Encoding.RAW])
def test_png_and_raw_change_nothing(held_out, large, encoding):
    for images_NHWC in (held_out[0], large):
        np.testing.assert_array_equal(sent(images_NHWC, encoding), images_NHWC)


def changes(score: Score, images_NHWC: np.ndarray, name: str) -> float:
    """The mean change of a score by JPEG, as a share of the spread of the scores."""
    arrived = sent(images_NHWC, Encoding.JPEG)
    before_N, after_N = score(images_NHWC), score(arrived)
    mean, most = np.abs(before_N - after_N).mean(), np.abs(before_N - after_N).max()
    print(f"{name}: spread {before_N.std():.3g}, change: mean {mean:.2g}, most {most:.2g}")
    return mean / before_N.std()


@pytest.mark.parametrize(("name", "most"), [("pickscore", 0.01), ("hpsv3", 0.02), ("judge", 0.05)])
def test_jpeg_changes_scores_of_the_miniature_by_a_share_of_their_spread(held_out, name, most):
    images_NHWC, texts = held_out
    (settings,) = (scorer for scorer in load_config("shapes_both").scorers if scorer.name == name)
    scorer = LoadedScorer(settings)
    assert changes(lambda images: scorer.score(images, texts).score_N, images_NHWC, name) < most


def test_resizing_to_224_pixels_takes_most_of_what_jpeg_changed(large, tiny_pickscore):
    prompts = ["a red circle"] * len(large)
    assert changes(partial(tiny_pickscore, prompts=prompts), large, "tiny PickScore") < 0.02
    arrived = sent(large, Encoding.JPEG)
    small, of_jpeg = (tiny_pickscore.pixels.resize(images).numpy().astype(int) for images in (large, arrived))
    at_full, at_224 = np.abs(arrived.astype(int) - large).mean(), np.abs(of_jpeg - small).mean()
    print(f"levels in the mean: {at_full:.2f} at 512 px, {at_224:.2f} at 224 px")
    assert at_224 < 0.4 * at_full
