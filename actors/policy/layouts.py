"""A trained adapter as a file: in the layout of diffusers, of PEFT and of ComfyUI.

In each of them the scale alpha / rank is multiplied into B, and alpha is the rank. So every reader applies the same
scale, whether it reads the alpha or not. The same weights give the same bytes in every process.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from actors.policy.settings import LoraSettings
from actors.policy.trained import PEFT_CONFIG, PEFT_FILE
from services.base.headers import sort_metadata

DIFFUSERS_METADATA = "lora_adapter_metadata"
"""The key of the adapter's configuration in the header of a file of diffusers."""

Adapter = Mapping[str, Tensor]
"""Matrices by `MODULE.lora_A.weight`, (rank, in), and `MODULE.lora_B.weight`, (out, rank)."""


def unit_scale(tensors: Mapping[str, Tensor], lora: LoraSettings) -> dict[str, Tensor]:
    """An adapter under the policy's names, with alpha / rank multiplied into B: it adds B·A to a weight."""
    scale = lora.alpha / lora.rank
    return {
        name.replace(".default.", "."): (tensor * scale if ".lora_B." in name else tensor)
        for name, tensor in tensors.items()
    }


def write_diffusers(path: Path, adapter: Adapter, lora: LoraSettings, about: Mapping[str, str]) -> None:
    """Write what diffusers' `save_lora_weights` writes: a file for `load_lora_weights` of any pipeline.

    Without the configuration in the header, diffusers takes alpha for the rank. It refuses `.alpha` tensors for SD3.

    Args:
        about: more entries of the header, which diffusers leaves alone.
    """
    config = {f"transformer.{key}": value for key, value in _config(lora).items()}
    metadata = {DIFFUSERS_METADATA: json.dumps(config, indent=2, sort_keys=True), **about}
    _write(path, {f"transformer.{name}": tensor for name, tensor in adapter.items()}, metadata)


def write_peft(folder: Path, adapter: Adapter, lora: LoraSettings, about: Mapping[str, str], base: str | None) -> None:
    """Write what PEFT's `save_pretrained` writes: a folder for `PeftModel.from_pretrained(transformer, folder)`.

    Args:
        base: the base model's hub id, for the configuration; None if it has none.
    """
    _write(folder / PEFT_FILE, {f"base_model.model.{name}": tensor for name, tensor in adapter.items()}, about)
    config = _config(lora) | {"base_model_name_or_path": base}
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))


def write_comfyui(path: Path, adapter: Adapter, about: Mapping[str, str]) -> None:
    """Write a file for ComfyUI's LoRA loader.

    It maps `transformer.` and a module's name in diffusers to a weight of its own or to rows of one (ComfyUI's
    comfy/lora.py, `model_lora_keys_unet`), and adds lora_up · lora_down · alpha / rank (comfy/weight_adapter/lora.py).
    """
    tensors = {}
    for name, tensor in adapter.items():
        module, _, matrix = name.partition(".lora_")
        tensors[f"transformer.{module}.lora_{'down' if matrix.startswith('A') else 'up'}.weight"] = tensor
        if matrix.startswith("A"):
            tensors[f"transformer.{module}.alpha"] = torch.tensor(float(tensor.shape[0]))
    _write(path, tensors, about)


def _config(lora: LoraSettings) -> dict[str, Any]:
    """PEFT's configuration of the adapter at unit scale."""
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.rank, target_modules=list(lora.targets), init_lora_weights="gaussian"
    )
    # PEFT keeps the targets in a set, whose order differs from process to process.
    return config.to_dict() | {"target_modules": sorted(lora.targets)}


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt", **metadata})
    sort_metadata(path)
