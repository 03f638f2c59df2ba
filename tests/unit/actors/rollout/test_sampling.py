"""Deterministic images: of another size and guidance, of part of an adapter, and with the base for the last steps."""

import contextlib

import numpy as np
import pytest
import torch

from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import ode_plan
from actors.rollout.sampling import Sampling
from actors.rollout.settings import RolloutSettings
from actors.rollout.worker import Generator
from tests.helpers.families import FAMILIES
from tests.helpers.tiny import stir, tiny_settings

PLAIN = Sampling(16, 16, 4, 1.0)
ADDRESSES = [(0, -1, 0, 0), (0, -1, 0, 1), (0, -1, 1, 0)]
PROMPTS = ["a cat", "a cat", "a dog"]


def generator_of(folder, merge: bool = False, **changes) -> Generator:
    policy = Policy(tiny_settings(folder, **changes), 0)
    stir(policy)
    settings = RolloutSettings(micro_batch=4, decode_batch=2, merge_adapter=merge)
    return Generator(policy, FlowSDESettings(), settings)


def images(generator: Generator, sampling: Sampling) -> np.ndarray:
    return generator.sample(PROMPTS, ADDRESSES, sampling)[0]


def test_plain_sampling_gives_the_bits_of_a_plan_without_forks(sd3_folder):
    generator = generator_of(sd3_folder)
    conditioning = generator.embed(PROMPTS)
    front = generator.sampler_of(generator.policy.family.sampled_as(PLAIN.of(generator.policy.settings), None))(
        ode_plan(4), ADDRESSES, [0, 1, 2], conditioning
    )
    expected, _ = generator.decode(front.leaf_MZ, generator.policy.family)
    found, finite_N = generator.sample(PROMPTS, ADDRESSES, PLAIN)
    np.testing.assert_array_equal(found, expected)
    assert finite_N.all()


@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
def test_the_base_takes_over_after_its_share_of_the_steps(sd3_folder, merge):
    """Two of four steps by hand: the policy's velocity, then the base's, by Euler's method."""
    generator = generator_of(sd3_folder, merge)
    policy, family = generator.policy, generator.policy.family
    sampler, conditioning = (
        generator.sampler_of(family.sampled_as(PLAIN.of(policy.settings), None)),
        generator.embed(PROMPTS),
    )
    x_NZ, sigmas = sampler.noise(ADDRESSES), family.sigmas(4)
    with torch.no_grad():
        for i in range(4):
            with contextlib.nullcontext() if i < 2 else policy.base():
                v_NZ = family.velocity(x_NZ, sigmas[i].expand(3), conditioning)
            x_NZ = x_NZ + (sigmas[i + 1] - sigmas[i]) * v_NZ
    expected, _ = generator.decode(x_NZ, family)
    hybrid = images(generator, Sampling(16, 16, 4, 1.0, base_after=0.5))
    assert np.abs(hybrid.astype(int) - expected).max() <= 1
    base, whole = (images(generator, Sampling(16, 16, 4, 1.0, base_after=share)) for share in (0.0, 1.0))
    assert (hybrid != base).any()
    assert (hybrid != whole).any()
    np.testing.assert_array_equal(images(generator, Sampling(16, 16, 4, 1.0, base_after=0.1)), base)


def test_a_scaled_adapter_is_one_of_scaled_weights_and_its_scale_comes_back(sd3_folder):
    generator = generator_of(sd3_folder)
    whole = images(generator, PLAIN)
    half = images(generator, Sampling(16, 16, 4, 1.0, adapter_scale=0.5))
    none = images(generator, Sampling(16, 16, 4, 1.0, adapter_scale=0.0))
    np.testing.assert_array_equal(images(generator, PLAIN), whole)
    np.testing.assert_array_equal(none, images(generator, Sampling(16, 16, 4, 1.0, base_after=0.0)))
    with torch.no_grad():
        for name, parameter in generator.policy.parameters.items():
            if "lora_B" in name:
                parameter *= 0.5
    np.testing.assert_array_equal(images(generator, PLAIN), half)
    assert (half != whole).any()


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_another_size_and_guidance_are_those_of_a_policy_made_so(case, tiny_folder):
    generator = generator_of(tiny_folder(case), **case.settings)
    size = 2 * generator.policy.settings.height
    guidance = case.guidances[-1]
    other = generator_of(tiny_folder(case), **{**case.settings, "height": size, "guidance": guidance, "num_steps": 3})
    width = generator.policy.settings.width
    found = images(generator, Sampling(size, width, 3, guidance))
    assert found.shape == (3, size, width, 3)
    np.testing.assert_array_equal(found, images(other, Sampling(size, width, 3, guidance)))


def test_a_negative_prompt_counts_where_guidance_is_on(sd3_folder):
    generator = generator_of(sd3_folder)
    plain, empty, other = (
        images(generator, Sampling(16, 16, 4, 4.5, negative)) for negative in (None, "", "blurred, ugly")
    )
    np.testing.assert_array_equal(plain, empty)
    assert (other != plain).any()
    without = images(generator, Sampling(16, 16, 4, 1.0, "blurred, ugly"))
    np.testing.assert_array_equal(without, images(generator, PLAIN))
