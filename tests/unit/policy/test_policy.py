"""The adapter: exact exchange of weights, and files that diffusers reads in a process without our code."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from actors.policy.kernels import FlowSDE
from actors.policy.policy import Policy, read_adapter
from actors.policy.settings import FlowSDESettings, LoraSettings
from actors.policy.weights import checksum
from actors.rollout.noise import noise
from actors.rollout.plans import ode_plan
from actors.rollout.sampler import Sampler
from services.errors import UserError
from tests.tiny import sd3_settings

CLEAN_PROCESS = """
import json, sys, torch
from diffusers import StableDiffusion3Pipeline
folder, lora, noise, out = sys.argv[1:]
pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
pipe.load_lora_weights(lora)
latents = torch.tensor(json.load(open(noise)))
image = pipe("a red cat", num_inference_steps=5, guidance_scale=1.0, latents=latents, height=16, width=16,
             max_sequence_length=1, output_type="latent").images
assert not any(name.split(".")[0] in ("actors", "system", "services") for name in sys.modules)
json.dump(image.tolist(), open(out, "w"))
"""


def stir(policy: Policy, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def test_two_policies_of_one_seed_start_equal_and_exchange_weights_exactly(sd3_folder):
    first, second = (Policy(sd3_settings(sd3_folder), seed=3) for _ in range(2))
    assert first.export(0).checksum == second.export(0).checksum
    stir(first)
    weights = first.export(5)
    assert (
        second.load(weights.arrays) == weights.checksum != checksum(Policy(sd3_settings(sd3_folder), seed=3).arrays())
    )
    assert weights.version == 5


def test_weights_of_another_shape_are_refused(sd3_folder):
    small = Policy(sd3_settings(sd3_folder, lora=LoraSettings(rank=2, alpha=4)), seed=0)
    with pytest.raises(ValueError, match="another policy"):
        Policy(sd3_settings(sd3_folder), seed=0).load(small.arrays())


def test_checksum_sees_every_byte_name_and_shape():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    assert checksum(base) == checksum(dict(reversed(base.items())))
    for changed in (
        base | {"b": np.array([1, np.nextafter(np.float32(1), np.float32(2))], np.float32)},
        base | {"a": np.zeros((3, 2), np.float32)},
        {"a": base["a"], "c": base["b"]},
    ):
        assert checksum(changed) != checksum(base)


def test_saved_adapter_samples_the_same_image_in_plain_diffusers(sd3_folder, tmp_path):
    policy = Policy(sd3_settings(sd3_folder), seed=0)
    stir(policy)
    policy.save_adapter(tmp_path / "lora")
    start = noise([(1, 2, 3)], policy.family.latent_shape)
    (tmp_path / "noise.json").write_text(json.dumps(start.tolist()))
    subprocess.run(
        [
            sys.executable,
            "-c",
            CLEAN_PROCESS,
            sd3_folder,
            tmp_path / "lora",
            tmp_path / "noise.json",
            tmp_path / "out.json",
        ],
        check=True,
        capture_output=True,
        timeout=120,
        cwd=tmp_path,
    )
    theirs = np.array(json.loads((tmp_path / "out.json").read_text()))
    sampler = Sampler(policy.family, policy.sigmas, FlowSDE(FlowSDESettings(), policy.sigmas), 1)
    ours = sampler(ode_plan(5), [(1, 2, 3)], [0], policy.family.encode(["a red cat"])).leaf_MZ
    with policy.reference():
        base = sampler(ode_plan(5), [(1, 2, 3)], [0], policy.family.encode(["a red cat"])).leaf_MZ
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.abs(base.numpy() - theirs).max() > 1e-2


def test_saved_adapter_can_be_read_back(sd3_folder, tmp_path):
    policy = Policy(sd3_settings(sd3_folder), seed=0)
    stir(policy)
    other = {name: array + 1 for name, array in policy.arrays().items()}
    policy.save_adapter(tmp_path, other)
    read = read_adapter(tmp_path, list(policy.parameters))
    assert checksum(read) == checksum(other)
    with pytest.raises(UserError, match="no adapter"):
        read_adapter(tmp_path / "nowhere", [])
    with pytest.raises(UserError, match="another model"):
        read_adapter(tmp_path, ["x"])


def test_missing_models_are_named(sd3_folder, tmp_path):
    settings = sd3_settings(sd3_folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="model_index"):
        Policy(settings.model_copy(update={"model": str(tmp_path / "empty")}), 0)
    with pytest.raises(UserError, match=r"lora\.targets"):
        Policy(settings.model_copy(update={"lora": LoraSettings(targets=("nothing",))}), 0)
