"""Every family against its own diffusers pipeline: whole images, and the adapter in a process without our code."""

import json
import subprocess
import sys

import diffusers
import numpy as np
import pytest

from actors.policy.family import to_uint8
from actors.policy.kernels import FlowSDE
from actors.policy.noise import noise
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.rollout.plans import ode_plan
from actors.rollout.sampler import Sampler
from tests.helpers.families import FAMILIES, Case
from tests.helpers.tiny import stir, tiny_settings

PROMPTS = ["a red cat", "a much longer prompt of a dog"]
CLEAN_PROCESS = """
import json, sys, torch, diffusers
name, folder, lora, given = sys.argv[1:5]
given = json.load(open(given))
absent = given.pop("absent")
pipe = getattr(diffusers, name).from_pretrained(folder, **{part: None for part in absent})
pipe.load_lora_weights(lora)
latents = torch.tensor(given.pop("latents"))
image = pipe(latents=latents, output_type="latent", **given).images
assert not any(name.split(".")[0] in ("actors", "system", "services") for name in sys.modules)
json.dump(image.tolist(), open(sys.argv[5], "w"))
"""


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
    pipe = case.pipeline.from_pretrained(folder, **dict.fromkeys(case.absent))
    pipe.set_progress_bar_config(disable=True)
    given = case.arguments(PROMPTS, guidance, 7)
    theirs = pipe(**given, latents=case.given(start_MZ), output_type="latent").images
    np.testing.assert_allclose(case.shown(policy, latent_MZ), theirs, atol=1e-5)
    images = pipe(**given, latents=case.given(start_MZ), output_type="np").images
    difference = to_uint8(policy.family.decode(latent_MZ)).numpy().astype(int) - np.round(images * 255).astype(int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_the_exported_adapter_samples_the_same_image_without_our_code(case: Case, tiny_folder, tmp_path):
    folder = tiny_folder(case)
    guidance = case.guidances[-1]
    policy = Policy(tiny_settings(folder, guidance=guidance, **case.settings), seed=0)
    base_MZ, start_MZ = ours(policy, PROMPTS)
    stir(policy)
    latent_MZ, _ = ours(policy, PROMPTS)
    policy.save(tmp_path / "lora")
    given = {**case.arguments(PROMPTS, guidance, 5), "latents": case.given(start_MZ).tolist(), "absent": case.absent}
    (tmp_path / "given.json").write_text(json.dumps(given))
    arguments = [case.pipeline.__name__, folder, tmp_path / "lora", tmp_path / "given.json", tmp_path / "out.json"]
    subprocess.run([sys.executable, "-c", CLEAN_PROCESS, *arguments], check=True, timeout=300, cwd=tmp_path)
    theirs = np.array(json.loads((tmp_path / "out.json").read_text()))
    np.testing.assert_allclose(case.shown(policy, latent_MZ), theirs, atol=1e-5)
    assert np.abs(case.shown(policy, base_MZ).numpy() - theirs).max() > 1e-2


def test_every_family_that_a_recipe_can_name_is_tested_here():
    from actors.policy.families import FAMILIES as known

    assert {case.pipeline for case in FAMILIES} == {getattr(diffusers, name) for name in known}
