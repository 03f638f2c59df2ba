"""Finds the family of a model. It does not import PyTorch, so that a recipe can be checked before any actor starts."""

import importlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.policy.settings import PolicySettings
from services.base.errors import UserError
from services.base.paths import model_file

if TYPE_CHECKING:
    from actors.policy.family import Family


class Entry(NamedTuple):
    """The properties of a family that are known without PyTorch."""

    driver: str
    """The class of the family, as `module:Class`."""
    packs: bool
    """Whether an image has an even number of latent pixels along each side: 2x2 of them are one token, or for
    Qwen-Image 2.1 one position of its text encoder. If not, the transformer's patch_size is the side of a token."""


FAMILIES = {
    "StableDiffusion3Pipeline": Entry("actors.policy.sd3:SD3", packs=False),
    "FluxPipeline": Entry("actors.policy.flux:Flux", packs=True),
    "Flux2Pipeline": Entry("actors.policy.flux2:Flux2", packs=True),
    "Flux2KleinPipeline": Entry("actors.policy.flux2:Flux2Klein", packs=True),
    "ZImagePipeline": Entry("actors.policy.z_image:ZImage", packs=True),
    "QwenImagePipeline": Entry("actors.policy.qwen_image:QwenImage", packs=True),
    "QwenImage21Pipeline": Entry("actors.policy.qwen_image21:QwenImage21", packs=True),
}
"""The families, by the pipeline class in model_index.json."""


def pipeline_name(model: str) -> str:
    """The pipeline class that a model folder or hub id names in its model_index.json.

    Raises:
        UserError: no such model, or not a diffusers pipeline.
    """
    name = _config(model, "model_index.json").get("_class_name")
    if not isinstance(name, str):
        raise UserError(
            f"policy.model: model_index.json of `{model}` names no pipeline; give a model in diffusers' layout"
        )
    return name


def transformer_class(model: str) -> str:
    """The name of the transformer's class in diffusers, from model_index.json.

    Raises:
        UserError: it names none.
    """
    entry = _config(model, "model_index.json").get("transformer")
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] != "diffusers":
        raise UserError(
            f"policy.model: model_index.json of `{model}` names no transformer of diffusers; "
            "give a model in diffusers' layout"
        )
    return str(entry[1])


def vae_scale(vae: Mapping[str, Any]) -> int:
    """The number of image pixels along the side of a latent pixel, from a VAE's config."""
    if "block_out_channels" in vae:
        return 2 ** (len(vae["block_out_channels"]) - 1)
    return 2 ** len(vae["temperal_downsample"])


def check_size(settings: PolicySettings, section: str = "policy") -> None:
    """Refuse image sizes that are not a whole number of tokens, or that are larger than the model has positions for.

    Args:
        section: the section of the recipe that has the sizes, for the message.

    Raises:
        UserError: a size does not fit (it names the nearest ones), the model is missing, or its family is unknown.
    """
    entry = _entry(settings.model)
    vae, transformer = (_config(settings.model, f"{part}/config.json") for part in ("vae", "transformer"))
    grid_px = vae_scale(vae) * (2 if entry.packs else transformer["patch_size"])
    most_px = grid_px * transformer.get("pos_embed_max_size", math.inf)
    for side in ("height", "width"):
        size_px = getattr(settings, side)
        if size_px % grid_px:
            below = size_px // grid_px * grid_px
            near = f"{below} and {below + grid_px}" if below else f"{grid_px} at least"
            raise UserError(
                f"{section}.{side}: {size_px} is not a multiple of {grid_px}, which this model needs; try {near}"
            )
        if size_px > most_px:
            raise UserError(
                f"{section}.{side}: {size_px} is more than {most_px}, the most this model has positions for"
            )


def pipeline_file(model: str) -> Path:
    """The model_index.json of a model folder or hub id. The model's other files are beside it once they are downloaded.

    Raises:
        UserError: no such model.
    """
    return model_file("policy.model", model, "model_index.json")


def family_path(settings: PolicySettings) -> str:
    """The class that drives `settings.model`, as `module:Class`.

    Raises:
        UserError: the model is missing, or its family is unknown.
    """
    return _entry(settings.model).driver


def family_class(settings: PolicySettings) -> "type[Family]":
    """The class that drives `settings.model`; raises as `family_path`."""
    module, _, attribute = family_path(settings).partition(":")
    return getattr(importlib.import_module(module), attribute)


def _entry(model: str) -> Entry:
    name = pipeline_name(model)
    if name not in FAMILIES:
        raise UserError(
            f"policy.model: `{model}` is a {name}, which is not supported; give one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def _config(model: str, file: str) -> dict[str, Any]:
    """A JSON file of a model.

    Raises:
        UserError: it is missing or not a JSON object.
    """
    try:
        found = json.loads(model_file("policy.model", model, file).read_text(errors="replace"))
    except json.JSONDecodeError as error:
        raise UserError(f"policy.model: {file} of `{model}` is not JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"policy.model: {file} of `{model}` is not a JSON object; copy it again")
    return found
