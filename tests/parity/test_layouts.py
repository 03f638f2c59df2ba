"""Every layout of an adapter samples our image in a process without our code, for every family."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from actors.policy.kernels import FlowSDE
from actors.policy.layouts import unit_scale, write_comfyui, write_diffusers, write_peft
from actors.policy.noise import noise
from actors.policy.policy import Policy
from actors.policy.settings import FlowSDESettings
from actors.policy.trained import LORA_FILE, read_trained
from actors.rollout.plans import ode_plan
from actors.rollout.sampler import Sampler
from system.export.merge import write_merged
from tests.helpers.families import FAMILIES, Case
from tests.helpers.tiny import stir, tiny_settings

PROMPTS = ["a red cat", "a much longer prompt of a dog"]
CLEAN_PROCESS = r"""
import json, re, sys, torch, diffusers
from peft import PeftModel
from safetensors.torch import load_file

name, folder, layouts, given, out = sys.argv[1:]
given = json.load(open(given))
absent = dict.fromkeys(given.pop("absent"))
latents = torch.tensor(given.pop("latents"))
BOTH = r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|ff(_context)?\.net\.(0\.proj|2)"
# The modules that ComfyUI maps to its own weights: comfy/utils.py, mmdit_to_diffusers and flux_to_diffusers. Its
# Qwen-Image has diffusers' names.
MAPPED = {
    "StableDiffusion3Pipeline": BOTH + r"|attn2\.(to_[qkv]|to_out\.0)|norm1(_context)?\.linear)",
    "FluxPipeline": BOTH + r"|norm1(_context)?\.linear)"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)",
    "Flux2KleinPipeline": BOTH + r"|ff(_context)?\.linear_(in|out))"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    "QwenImagePipeline": ".*",
}


def comfyui(pipe):
    "The rule of ComfyUI's loader: W + lora_up @ lora_down * alpha / rank, for the keys that it knows."
    lora, used = load_file(f"{layouts}/comfyui.safetensors"), set()
    for module, layer in pipe.transformer.named_modules():
        keys = [f"transformer.{module}.{end}" for end in ("lora_up.weight", "lora_down.weight", "alpha")]
        if re.fullmatch(MAPPED[name], module) and keys[0] in lora:
            up, down, alpha = (lora[key] for key in keys)
            layer.weight.data += up @ down * (alpha.item() / down.shape[0])
            used.update(keys)
    assert used == set(lora), set(lora) - used


def peft(pipe):
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, f"{layouts}/peft")


def merged(pipe):
    pipe.transformer = diffusers.AutoModel.from_pretrained(f"{layouts}/merged", subfolder="transformer")


images = {}
for load in (comfyui, peft, merged):
    pipe = getattr(diffusers, name).from_pretrained(folder, **absent)
    load(pipe)
    images[load.__name__] = pipe(latents=latents, output_type="latent", **given).images.tolist()
assert not any(module.split(".")[0] in ("actors", "system", "services") for module in sys.modules)
json.dump(images, open(out, "w"))
"""


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_an_adapter_in_any_layout_samples_the_same_image_without_our_code(case: Case, tiny_folder, tmp_path):
    folder, guidance = tiny_folder(case), case.guidances[-1]
    policy = Policy(tiny_settings(folder, guidance=guidance, **case.settings), seed=0)
    stir(policy)
    lora, roots = policy.settings.lora, [(1, 2, 3, row) for row in range(2)]
    adapter = {name: tensor.detach() for name, tensor in unit_scale(policy.parameters, lora).items()}
    write_comfyui(tmp_path / "comfyui.safetensors", adapter, {})
    (tmp_path / "peft").mkdir()
    write_peft(tmp_path / "peft", adapter, lora, {}, None)
    write_merged(str(folder), adapter, tmp_path / "merged" / "transformer")
    sampler = Sampler(policy.family, policy.sigmas, FlowSDE(FlowSDESettings(), policy.sigmas), 4)
    front = sampler(ode_plan(policy.settings.num_steps), roots, range(2), policy.family.encode(PROMPTS))
    ours = case.shown(policy, front.leaf_MZ)
    start_MZ = case.given(noise(roots, policy.family.latent_shape))
    given = {**case.arguments(PROMPTS, guidance, 5), "latents": start_MZ.tolist(), "absent": case.absent}
    (tmp_path / "given.json").write_text(json.dumps(given))
    arguments = [case.pipeline.__name__, folder, tmp_path, tmp_path / "given.json", tmp_path / "out.json"]
    subprocess.run([sys.executable, "-I", "-c", CLEAN_PROCESS, *arguments], check=True, timeout=300, cwd=tmp_path)
    theirs = json.loads((tmp_path / "out.json").read_text())
    assert theirs.keys() == {"comfyui", "peft", "merged"}
    for layout, image in theirs.items():
        np.testing.assert_allclose(ours, image, atol=1e-5, err_msg=layout)


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_a_file_for_diffusers_is_what_diffusers_own_function_writes(case: Case, tiny_folder, tmp_path):
    policy = Policy(tiny_settings(tiny_folder(case), **case.settings), seed=0)
    stir(policy)
    adapter = {name: tensor.detach() for name, tensor in unit_scale(policy.parameters, policy.settings.lora).items()}
    write_diffusers(tmp_path / "ours.safetensors", adapter, policy.settings.lora, {"tempflow_step": "3"})
    config = policy.transformer.peft_config["default"].to_dict() | {"lora_alpha": policy.settings.lora.rank}
    case.pipeline.save_lora_weights(tmp_path, transformer_lora_layers=adapter, transformer_lora_adapter_metadata=config)
    ours, theirs = load_file(tmp_path / "ours.safetensors"), load_file(tmp_path / LORA_FILE)
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)
    headers = []
    for name in ("ours.safetensors", LORA_FILE):
        with safe_open(tmp_path / name, "pt") as file:
            headers.append(dict(file.metadata()))
    assert headers[0].pop("tempflow_step") == "3"
    configs = [json.loads(header.pop("lora_adapter_metadata")) for header in headers]
    for found in configs:
        found["transformer.target_modules"] = sorted(found["transformer.target_modules"])
    assert headers[0] == headers[1] == {"format": "pt"}
    assert configs[0] == configs[1]


def test_an_adapter_in_pefts_layout_is_read_back_by_us(sd3_folder, tmp_path):
    policy = Policy(tiny_settings(sd3_folder), seed=0)
    stir(policy)
    lora = policy.settings.lora
    write_peft(tmp_path, {k: v.detach() for k, v in unit_scale(policy.parameters, lora).items()}, lora, {}, "a/base")
    read = read_trained(tmp_path, lora, "--adapter")
    for name, parameter in policy.parameters.items():
        np.testing.assert_array_equal(read[name], parameter.detach().numpy())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "a/base"
