"""Which family drives a model. Holds no Torch, so that a recipe can be checked before any actor starts."""

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from actors.policy.settings import PolicySettings
from services.errors import UserError
from services.paths import model_file

if TYPE_CHECKING:
    from actors.policy.family import Family

FAMILIES = {
    "StableDiffusion3Pipeline": "actors.policy.sd3:SD3",
    "FluxPipeline": "actors.policy.flux:Flux",
    "Flux2KleinPipeline": "actors.policy.flux2_klein:Flux2Klein",
    "QwenImagePipeline": "actors.policy.qwen_image:QwenImage",
}
"""Pipeline class in model_index.json to the class that drives it."""


def pipeline_name(model: str) -> str:
    """The pipeline class that a model folder or hub id names in its model_index.json.

    Raises:
        UserError: no such model, or not a diffusers pipeline.
    """
    return json.loads(pipeline_file(model).read_text())["_class_name"]


def pipeline_file(model: str) -> Path:
    """The model_index.json of a model folder or hub id; the model's other files lie beside it, once they are fetched.

    Raises:
        UserError: no such model.
    """
    return model_file("policy.model", model, "model_index.json")


def family_path(settings: PolicySettings) -> str:
    """The class that drives `settings.model`, as `module:Class`.

    Raises:
        UserError: the model is missing, or of a family that is not known.
    """
    name = pipeline_name(settings.model)
    if name not in FAMILIES:
        raise UserError(f"policy.model: `{settings.model}` is a {name}; supported are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def family_class(settings: PolicySettings) -> "type[Family]":
    """The class that drives `settings.model`; raises as `family_path`."""
    module, _, attribute = family_path(settings).partition(":")
    return getattr(importlib.import_module(module), attribute)
