"""Decoding in bf16: how far pixels and rewards are from those of fp32. With `-s`, the figures are printed."""

import numpy as np
import pytest
import torch

from actors.policy.families.family import Family, to_uint8
from actors.policy.kernels import make_kernel
from actors.policy.noise import noise
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import ode_plan
from actors.rollout.sampler import Sampler
from services.scoring.loaded import LoadedScorer
from system.bench.gpu.models import TINY, settings_of
from system.capacity.memory import processes
from system.loop.prompts import prompts_of
from system.recipe.load import load_config

IMAGES, STEPS = 48, 10


def family_of(model: str, folder, vae_dtype: str) -> Family:
    return Policy(settings_of(model, folder, dtype="fp32", device="cpu", vae_dtype=vae_dtype), seed=0).family


def levels(images_NHWC: np.ndarray, others_NHWC: np.ndarray) -> tuple[float, int]:
    """The mean and the largest difference of two batches of images, in levels of 255."""
    difference = np.abs(images_NHWC.astype(int) - others_NHWC)
    return difference.mean(), difference.max()


@pytest.mark.parametrize("model", TINY)
def test_pixels_of_random_weights_differ_by_less_than_a_level_in_the_mean(model, tmp_path):
    exact, rounded = (family_of(model, tmp_path, dtype) for dtype in ("fp32", "bf16"))
    assert (exact.pipe.vae.dtype, rounded.pipe.vae.dtype) == (torch.float32, torch.bfloat16)
    latent_NZ = noise([(0, row) for row in range(24)], exact.latent_shape)
    pixels, others = (family.decode(latent_NZ) for family in (exact, rounded))
    assert others.dtype == torch.float32
    mean, most = levels(to_uint8(pixels).numpy(), to_uint8(others).numpy())
    print(f"{model}: mean {mean:.2f}, most {most}")
    assert 0 < mean < 1
    assert most <= 8


def test_rewards_of_the_miniature_differ_by_less_than_a_hundredth_of_their_spread():
    config = load_config("shapes")
    assert config.data.heldout is not None
    prompts = prompts_of(config.data, config.data.heldout)
    texts = [prompts[row] for row in range(IMAGES)]
    exact, rounded = (
        Policy(config.policy.model_copy(update={"vae_dtype": dtype}), seed=0).family for dtype in ("fp32", "bf16")
    )
    sigmas = exact.sigmas(STEPS)
    sampler = Sampler(exact, sigmas, make_kernel(FlowSDESettings(), sigmas), micro_batch=24)
    front = sampler(ode_plan(STEPS), [(0, row) for row in range(IMAGES)], range(IMAGES), exact.encode(texts))
    images, others = (to_uint8(family.decode(front.leaf_MZ)).numpy() for family in (exact, rounded))
    mean, most = levels(images, others)
    print(f"miniature: mean {mean:.2f}, most {most}")
    assert 0 < mean < 1
    for settings in config.scorers:
        scorer = LoadedScorer(settings)
        one, other = (scorer.score(batch, texts).score_N for batch in (images, others))
        print(f"{settings.name}: spread {one.std():.3f}, mean difference {np.abs(one - other).mean():.4f}")
        assert np.abs(one - other).mean() < 0.01 * one.std()


def test_the_estimate_halves_the_vae():
    exact, rounded = (
        {one.role: one for one in processes(load_config("shapes", [f"policy.vae_dtype={dtype}"]))}["rollout"]
        for dtype in ("fp32", "bf16")
    )
    assert rounded.held["VAE"] == exact.held["VAE"] / 2
    assert rounded.phases["decoding"] < 0.6 * exact.phases["decoding"]
