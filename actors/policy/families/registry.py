"""Finds the family of a model. It does not import PyTorch, so that a recipe can be checked before any actor starts."""

import importlib
import math
from typing import TYPE_CHECKING, NamedTuple

from actors.policy.model_files import pipeline_name, read_json, vae_scale
from actors.policy.settings import PolicySettings
from services.base.errors import UserError

if TYPE_CHECKING:
    from actors.policy.families.family import Family


class Entry(NamedTuple):
    """The properties of a family that are known without PyTorch."""

    driver: str
    """The class of the family, as `module:Class`."""
    packs: bool
    """Whether an image has an even number of latent pixels along each side: 2x2 of them are one token, or for
    Qwen-Image 2.1 one position of its text encoder. If not, the transformer's patch_size is the side of a token."""


FAMILIES = {
    "StableDiffusion3Pipeline": Entry("actors.policy.families.sd3:SD3", packs=False),
    "FluxPipeline": Entry("actors.policy.families.flux:Flux", packs=True),
    "Flux2Pipeline": Entry("actors.policy.families.flux2:Flux2", packs=True),
    "Flux2KleinPipeline": Entry("actors.policy.families.flux2:Flux2Klein", packs=True),
    "ZImagePipeline": Entry("actors.policy.families.z_image:ZImage", packs=True),
    "QwenImagePipeline": Entry("actors.policy.families.qwen_image:QwenImage", packs=True),
    "QwenImage21Pipeline": Entry("actors.policy.families.qwen_image21:QwenImage21", packs=True),
}
"""The families, by the pipeline class in model_index.json."""


def check_size(settings: PolicySettings, section: str = "policy") -> None:
    """Refuse image sizes that are not a whole number of tokens, or that are larger than the model has positions for.

    Args:
        section: the section of the recipe that has the sizes, for the message.

    Raises:
        UserError: a size does not fit (it names the nearest ones), the model is missing, or its family is unknown.
    """
    entry = _entry(settings.model)
    vae, transformer = (read_json(settings.model, f"{part}/config.json") for part in ("vae", "transformer"))
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
