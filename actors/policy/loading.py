"""Whether a model's files hold what its class needs, without loading them: the class is built on the meta device."""

import importlib

import torch

from actors.policy.families import part_class, pipeline_file
from actors.policy.settings import PolicySettings
from services.base.errors import UserError
from services.base.headers import is_whole, shapes_below


def check_loads(settings: PolicySettings) -> None:
    """Refuse a transformer whose files lack a weight, which diffusers would draw at random, or have it in a wrong size.

    Where the files are not on this machine yet, nothing is compared.

    Raises:
        UserError: names the weight; or its config is of no model of diffusers.
    """
    folder = pipeline_file(settings.model).parent / "transformer"
    if not is_whole(folder):
        return
    found = dict(shapes_below(folder))
    library, name = part_class(settings.model, "transformer")
    kind = getattr(importlib.import_module(library), name)
    try:
        with torch.device("meta"):
            model = kind.from_config(kind.load_config(folder))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"policy.model: `{folder}` has a config that {name} cannot be made of: {error}") from error
    for weight, tensor in model.state_dict().items():
        if weight not in found:
            raise UserError(f"policy.model: the files in `{folder}` lack the weight {weight}; copy them again")
        if found[weight] != tuple(tensor.shape):
            raise UserError(
                f"policy.model: {weight} in `{folder}` has the shape {found[weight]}, and by its config.json it should "
                f"have {tuple(tensor.shape)}; copy both from one model"
            )
