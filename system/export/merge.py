"""The transformer of a base model with an adapter added to its weights, file by file."""

import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from actors.policy.layouts import Adapter
from actors.policy.loading import file_of_each
from actors.policy.model_files import pipeline_file
from services.base.errors import UserError
from services.base.headers import is_whole, opened


def write_merged(model: str, adapter: Adapter, folder: Path) -> None:
    """Write W + B·A for each weight W that has an adapter, and all else of the transformer as it is.

    The sum is made in fp32 and rounded once, to the number type of W. One file of the base is in memory at a time.

    Args:
        model: the base model, a folder or a hub id.
        adapter: at unit scale.

    Raises:
        UserError: the base model is not on this machine, or is another one than the adapter was trained on.
    """
    base = pipeline_file(model).parent / "transformer"
    if not is_whole(base):
        raise UserError(
            f"the transformer of `{model}` is not on this machine, and merging needs it; download the model, or export "
            "the adapter alone with --layout diffusers"
        )
    modules = {name.partition(".lora_")[0] for name in adapter}
    files = file_of_each(base)
    if missing := sorted(module for module in modules if f"{module}.weight" not in files):
        raise UserError(f"`{model}` is not the model that the adapter was trained on: it has no module {missing[0]}")
    folder.mkdir(parents=True)
    for path in sorted(set(files.values())):
        with opened(path, "pt") as file:
            tensors = {name: _merged(name, file.get_tensor(name), adapter) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, folder / path.name, {"format": "pt"})
    for path in base.glob("*.json"):
        shutil.copyfile(path, folder / path.name)


def _merged(name: str, weight: Tensor, adapter: Adapter) -> Tensor:
    module = name.removesuffix(".weight")
    left, right = adapter.get(f"{module}.lora_B.weight"), adapter.get(f"{module}.lora_A.weight")
    if left is None or right is None or module == name:
        return weight
    return (weight.float() + left.float() @ right.float()).to(weight.dtype)
