"""Every layout of an adapter samples our image in a process without our code, for every family."""

import json
import subprocess
import sys
from pathlib import Path

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
LAYOUTS = ["diffusers", "comfyui", "peft", "merged"]
CLEAN_PROCESS = r"""
import json, pathlib, re, sys, torch, diffusers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import ProcessorMixin

BOTH = r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)|ff(_context)?\.net\.(0\.proj|2)"
FLUX2 = BOTH + r"|ff(_context)?\.linear_(in|out))|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
# The modules that ComfyUI maps to its own weights: comfy/utils.py, mmdit_to_diffusers, flux_to_diffusers and
# z_image_to_diffusers. Its Qwen-Image has diffusers' names. That of Qwen-Image 2.1 joins gate_layer and proj of the
# MLP, so these are left out.
MAPPED = {
    "StableDiffusion3Pipeline": BOTH + r"|attn2\.(to_[qkv]|to_out\.0)|norm1(_context)?\.linear)",
    "FluxPipeline": BOTH + r"|norm1(_context)?\.linear)"
    r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)",
    "Flux2Pipeline": FLUX2,
    "Flux2KleinPipeline": FLUX2,
    "ZImagePipeline": r"(layers|noise_refiner|context_refiner)\.\d+\."
    r"(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123]|adaLN_modulation\.0)",
    "QwenImagePipeline": ".*",
    "QwenImage21Pipeline": r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0)|img_mlp\.out)",
}


class Text(ProcessorMixin):
    "The text half of a processor that needs torchvision for images."
    def __init__(self, tokenizer=None, chat_template=None, **_):
        super().__init__(tokenizer, chat_template=chat_template)

    def apply_chat_template(self, conversation, **how):
        return super().apply_chat_template([conversation], **how)


def comfyui(pipe, family):
    "The rule of ComfyUI's loader: W + lora_up @ lora_down * alpha / rank, for the keys that it knows."
    lora, used = load_file(family / "comfyui.safetensors"), set()
    for module, layer in pipe.transformer.named_modules():
        keys = [f"transformer.{module}.{end}" for end in ("lora_up.weight", "lora_down.weight", "alpha")]
        if re.fullmatch(MAPPED[type(pipe).__name__], module) and keys[0] in lora:
            up, down, alpha = (lora[key] for key in keys)
            layer.weight.data += up @ down * (alpha.item() / down.shape[0])
            used.update(keys)
    assert used == set(lora), set(lora) - used


def peft(pipe, family):
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, str(family / "peft"))


def merged(pipe, family):
    pipe.transformer = diffusers.AutoModel.from_pretrained(str(family / "merged"), subfolder="transformer")


def base(pipe, family):
    "No adapter."


LOADERS = {"base": base, "diffusers": lambda pipe, family: pipe.load_lora_weights(family / "diffusers"),
           "comfyui": comfyui, "peft": peft, "merged": merged}
for family in map(pathlib.Path, sys.argv[1:]):
    given = json.loads((family / "given.json").read_text())
    model, absent = given.pop("model"), dict.fromkeys(given.pop("absent"))
    latents, images = torch.tensor(given.pop("latents")), {}
    made = {}
    if (pathlib.Path(model) / "processor").exists():
        made = {"processor": Text.from_pretrained(model, subfolder="processor")}
    for layout, load in LOADERS.items():
        pipe = getattr(diffusers, given["pipeline"]).from_pretrained(model, **absent, **made)
        pipe.set_progress_bar_config(disable=True)
        load(pipe, family)
        calls = [call | {"latents": latents[[row]]} for row, call in enumerate(given["calls"])]
        images[layout] = torch.cat([pipe(output_type="latent", **call).images for call in calls]).tolist()
    (family / "images.json").write_text(json.dumps(images))
assert not any(module.split(".")[0] in ("actors", "system", "services") for module in sys.modules)
"""


def write_layouts(case: Case, model: Path, family: Path) -> np.ndarray:
    """Write an adapter of a family in every layout, and what a pipeline is to be asked. Returns our image of it."""
    policy = Policy(tiny_settings(model, guidance=case.guidances[-1], **case.settings), seed=0)
    stir(policy)
    lora, roots = policy.settings.lora, [(1, 2, 3, row) for row in range(2)]
    adapter = {name: tensor.detach() for name, tensor in unit_scale(policy.parameters, lora).items()}
    policy.save(family / "diffusers")
    write_comfyui(family / "comfyui.safetensors", adapter, {})
    (family / "peft").mkdir()
    write_peft(family / "peft", adapter, lora, {}, None)
    write_merged(str(model), adapter, family / "merged" / "transformer")
    given = {
        "model": str(model),
        "pipeline": case.pipeline.__name__,
        "absent": case.absent,
        "latents": case.given(noise(roots, policy.family.latent_shape)).tolist(),
        "calls": [case.arguments(prompt, case.guidances[-1], 5) for prompt in PROMPTS],
    }
    (family / "given.json").write_text(json.dumps(given))
    sampler = Sampler(policy.family, policy.sigmas, FlowSDE(FlowSDESettings(), policy.sigmas), 4)
    front = sampler(ode_plan(policy.settings.num_steps), roots, range(2), policy.family.encode(PROMPTS))
    return np.array(case.shown(policy, front.leaf_MZ))


def test_an_adapter_in_any_layout_samples_the_same_image_without_our_code(tiny_folder, tmp_path):
    """One process for all families: most of its time goes into the imports of diffusers and PEFT."""
    ours = {str(case): write_layouts(case, tiny_folder(case), tmp_path / str(case)) for case in FAMILIES}
    command = [sys.executable, "-I", "-c", CLEAN_PROCESS, *(str(tmp_path / family) for family in ours)]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path)
    for family, image in ours.items():
        theirs = json.loads((tmp_path / family / "images.json").read_text())
        assert np.abs(image - theirs.pop("base")).max() > 1e-2, f"the adapter of {family} does nothing"
        assert list(theirs) == LAYOUTS
        for layout, found in theirs.items():
            np.testing.assert_allclose(image, found, atol=1e-5, err_msg=f"{family}, {layout}")


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
