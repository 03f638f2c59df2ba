"""The shapes of a model without its weights: from its folder, or from the configurations of known models in `models/`.

`models/ORG/NAME/` has the layout of a model folder of diffusers, JSON files alone, with the keys that shapes depend on.
They are facts of the published models: numbers of parameters are compared with the published ones in a test.
"""

from __future__ import annotations

import importlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn

from actors.policy.families.family import DTYPES, Family
from actors.policy.families.registry import family_class
from actors.policy.loading import default_dtype
from actors.policy.settings import PolicySettings
from services.base.errors import UserError
from services.base.paths import resolve_model
from system.capacity.trace import META

KNOWN = Path(__file__).parent / "models"

NEEDED = ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")
"""Files that a cache which was filled in part can lack."""


def known_models() -> list[str]:
    """The hub ids whose shapes are in this package."""
    return sorted(path.parent.relative_to(KNOWN).as_posix() for path in KNOWN.glob("*/*/model_index.json"))


def architecture(model: str) -> Path:
    """The folder with a model's configurations: its own, that of the known model, or the one in the hub's cache.

    Asks nothing of the network.

    Raises:
        UserError: neither exists.
    """
    folder = Path(resolve_model(model))
    if (folder / "model_index.json").is_file():
        return folder
    if model in known_models():
        return KNOWN / model
    cached = None
    with suppress(HFValidationError):  # a path, which no hub has
        cached = try_to_load_from_cache(model, "model_index.json")
    if isinstance(cached, str) and all((Path(cached).parent / file).is_file() for file in NEEDED):
        return Path(cached).parent
    raise UserError(
        f"policy.model: the shapes of `{model}` are not known without its files; give its folder, or one of "
        f"{', '.join(known_models())}"
    )


def parts(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each part of a pipeline that the folder has a configuration for, by the part's name."""
    index = json.loads((folder / "model_index.json").read_text())
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and entry[0] and (folder / name / "config.json").is_file()
    }


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration in the folder of a model, or of a part of it."""
    return json.loads((folder / "config.json").read_text())


def build_part(
    folder: Path,
    part: str,
    device: torch.device = META,
    dtype: torch.dtype = torch.float32,
    changes: dict[str, Any] | None = None,
) -> nn.Module:
    """A part of a model with random weights (`meta`: none), made on the device in the dtype.

    Args:
        changes: other values for keys of its configuration, such as fewer layers.

    Raises:
        UserError: the folder has no such part.
    """
    found = parts(folder).get(part)
    if found is None:
        raise UserError(f"`{folder}` has no {part}; it has {', '.join(parts(folder))}")
    library, name = found
    kind: Any = getattr(importlib.import_module(library), name)
    config = read_config(folder / part) | (changes or {})
    with device, default_dtype(dtype):
        made = kind.from_config(config) if library == "diffusers" else kind(kind.config_class.from_dict(config))
    for module in made.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)  # as if loaded from a file in this dtype
    return made


def build_family(settings: PolicySettings, device: torch.device) -> Family:
    """The family that drives `settings.model`, with a transformer of random weights in the compute dtype and no VAE.

    Raises:
        UserError: the model is not known.
    """
    transformer = build_part(architecture(settings.model), "transformer", device, DTYPES[settings.dtype])
    return assemble(settings, {"transformer": transformer})


def assemble(settings: PolicySettings, made: dict[str, Any]) -> Family:
    """The family that drives `settings.model`, over the parts of its pipeline that are made already; others are None.

    Raises:
        UserError: the model is not known.
    """
    folder = architecture(settings.model)
    driver = family_class(settings.model_copy(update={"model": str(folder)}))
    index = json.loads((folder / "model_index.json").read_text())
    scheduler = getattr(importlib.import_module("diffusers"), index["scheduler"][1]).from_config(
        json.loads((folder / "scheduler/scheduler_config.json").read_text())
    )
    if "vae" in made:
        nn.Module.to(made["vae"], DTYPES[settings.vae_dtype])  # diffusers' own `to` warns
    names, optional = driver.pipeline_class._get_signature_keys(driver.pipeline_class)
    options = {key: index[key] for key in optional if key in index and not isinstance(index[key], list)}
    pipe = driver.pipeline_class(**dict.fromkeys(names) | made | options | {"scheduler": scheduler})
    return driver(settings, pipe, read_config(folder / "vae"))


def conditioning_shapes(settings: PolicySettings) -> dict[str, tuple[int, ...]]:
    """The shape of each text embedding of one prompt, by name, as the family's `encode` gives them."""
    folder = architecture(settings.model)
    driver = family_class(settings.model_copy(update={"model": str(folder)}))
    return driver.conditioning_shapes(settings, lambda part: read_config(folder / part))


def random_conditioning(family: Family) -> dict[str, Tensor]:
    """Embeddings of one prompt, random ones; a mask is of ones."""
    return {
        name: (torch.ones if name.endswith("mask") else torch.randn)(shape, device=family.device, dtype=family.dtype)
        for name, shape in conditioning_shapes(family.settings).items()
    }
