"""Every family against its own diffusers pipeline: whole images."""

import diffusers
import numpy as np
import pytest

from actors.policy.families.family import to_uint8
from actors.policy.kernels import FlowSDE
from actors.policy.noise import noise
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import ode_plan
from actors.rollout.sampler import Sampler
from tests.helpers.families import FAMILIES, Case
from tests.helpers.tiny import tiny_settings

PROMPTS = ["a red cat", "a much longer prompt of a dog"]


def ours(policy: Policy, prompts: list[str]) -> tuple:
    sampler = Sampler(policy.family, policy.sigmas, FlowSDE(FlowSDESettings(), policy.sigmas), 4)
    roots = [(1, 2, 3, row) for row in range(len(prompts))]
    front = sampler(ode_plan(policy.settings.num_steps), roots, range(len(prompts)), policy.family.encode(prompts))
    return front.leaf_MZ, noise(roots, policy.family.latent_shape)


@pytest.mark.parametrize(("case", "guidance"), [(case, g) for case in FAMILIES for g in case.guidances], ids=str)
def test_ode_images_equal_the_pipelines_own(case: Case, guidance: float, tiny_folder):
    folder = tiny_folder(case)
    policy = Policy(tiny_settings(folder, guidance=guidance, num_steps=7, **case.settings), seed=0)
    latent_MZ, start_MZ = ours(policy, PROMPTS)
    pipe, start_MZ = case.loaded(folder), case.given(start_MZ)

    def theirs(kind: str) -> np.ndarray:
        calls = [
            case.arguments(prompt, guidance, 7) | {"latents": start_MZ[[row]]} for row, prompt in enumerate(PROMPTS)
        ]
        return np.concatenate([pipe(**call, output_type=kind).images for call in calls])

    np.testing.assert_allclose(case.shown(policy, latent_MZ), theirs("latent"), atol=1e-5)
    images = case.seen(theirs("np"))
    difference = to_uint8(policy.family.decode(latent_MZ)).numpy().astype(int) - np.round(images * 255).astype(int)
    assert np.abs(difference).max() <= 1


def test_every_family_that_a_recipe_can_name_is_tested_here():
    from actors.policy.families.registry import FAMILIES as known

    assert {case.pipeline for case in FAMILIES} == {getattr(diffusers, name) for name in known}
