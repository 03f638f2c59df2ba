"""Which family drives a model. Holds no Torch, so that a recipe can be checked before any actor starts."""

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from actors.policy.settings import PolicySettings
from services.errors import UserError
from services.paths import resolve_model

if TYPE_CHECKING:
    from actors.policy.family import Family

FAMILIES = {
    "StableDiffusion3Pipeline": "actors.policy.sd3:SD3",
    "FluxPipeline": "actors.policy.flux:Flux",
    "Flux2KleinPipeline": "actors.policy.flux2_klein:Flux2Klein",
    "QwenImagePipeline": "actors.policy.qwen_image:QwenImage",
}
"""Pipeline class in model_index.json to the class that drives it."""


def pipeline_name(folder: Path | str) -> str:
    """The pipeline class a model folder or hub id names in its model_index.json.

    Raises:
        UserError: no such folder, or not a diffusers pipeline.
    """
    path = Path(folder) / "model_index.json"
    if not Path(folder).exists():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(str(folder), "model_index.json"))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"policy.model: no folder `{folder}` here and no such model on the hub ({type(error).__name__}); "
                "give a diffusers folder, or set HF_TOKEN for a gated model"
            ) from error
    if not path.exists():
        raise UserError(f"policy.model: `{folder}` has no model_index.json; give a folder in diffusers' layout")
    return json.loads(path.read_text())["_class_name"]


def family_path(settings: PolicySettings) -> str:
    """The class that drives `settings.model`, as `module:Class`.

    Raises:
        UserError: the model is missing, or of a family that is not known.
    """
    name = pipeline_name(resolve_model(settings.model))
    if name not in FAMILIES:
        raise UserError(f"policy.model: `{settings.model}` is a {name}; supported are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_class(settings: PolicySettings) -> "type[Family]":
    """The class that drives `settings.model`; raises as `family_path`."""
    module, _, attribute = family_path(settings).partition(":")
    return getattr(importlib.import_module(module), attribute)
