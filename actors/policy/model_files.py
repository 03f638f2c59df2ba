"""What the files of a model say about it, before any of them is loaded. It does not import PyTorch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.base.errors import UserError
from services.base.paths import model_file


def pipeline_file(model: str) -> Path:
    """The model_index.json of a model folder or hub id. The model's other files are beside it once they are downloaded.

    Raises:
        UserError: no such model.
    """
    return model_file("policy.model", model, "model_index.json")


def pipeline_name(model: str) -> str:
    """The pipeline class that a model folder or hub id names in its model_index.json.

    Raises:
        UserError: no such model, or not a diffusers pipeline.
    """
    name = read_json(model, "model_index.json").get("_class_name")
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
    entry = read_json(model, "model_index.json").get("transformer")
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


def read_json(model: str, file: str) -> dict[str, Any]:
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
