"""Builds a transformer without its weights, compares its files with it, and reads one rank's rows of them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.distributed.tensor import DTensor

from actors.policy.model_files import pipeline_file, transformer_class
from actors.policy.settings import PolicySettings
from actors.policy.sharding import local, rows_here, shard
from actors.policy.trained import WEIGHTS_FILE
from services.base.errors import UserError
from services.base.headers import is_whole, opened, shapes_below


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within this context, new tensors have this dtype unless another is asked for."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_loads(settings: PolicySettings) -> None:
    """Refuse a transformer whose files lack a weight, which diffusers would draw at random, or have it in a wrong size.

    Where the files are not on this machine yet, nothing is compared.

    Raises:
        UserError: names the weight; or its config is of no model of diffusers.
    """
    folder = pipeline_file(settings.model).parent / "transformer"
    if is_whole(folder):
        _compare(_without_weights(settings.model, folder, torch.float32).state_dict(), folder, "policy.model")


def load_rows(settings: PolicySettings, folder: Path, compute: torch.dtype, device: torch.device, ranks: int) -> Any:
    """The transformer in a folder, sharded over `ranks` processes, of which each reads only the rows that it holds.

    If every weight is trained, the weights are fp32, so that they are their own masters, and rounded to `compute`.
    The model is built without weights and sharded before any is read, so at most one more tensor is in memory.

    Raises:
        UserError: as `read_rows`, or the config is of no model of diffusers.
    """
    transformer = _without_weights(settings.model, folder, compute)
    if settings.lora is None:
        for parameter in transformer.parameters():
            parameter.data = parameter.data.float()
    shard(transformer, ranks, compute, device)
    state = {
        # diffusers gives the buffers that a file holds the compute dtype.
        name: torch.empty_like(tensor, device=device, dtype=tensor.dtype if isinstance(tensor, DTensor) else compute)
        for name, tensor in transformer.state_dict().items()
    }
    read_rows(state, folder, compute, "policy.model")
    transformer.load_state_dict(state, assign=True)
    return transformer.to(device).eval()


@torch.no_grad()
def read_rows(tensors: Mapping[str, Tensor], folder: Path, compute: torch.dtype, what: str) -> None:
    """Fill tensors from a transformer's files, rounded to `compute`; a sharded one only with the rows of this rank.

    Args:
        what: the setting that names the folder; an error begins with it.

    Raises:
        UserError: a weight is missing, has another shape, or is NaN or infinite; or a file is torn.
    """
    _compare(tensors, folder, what)
    files = file_of_each(folder)
    for path in sorted({files[name] for name in tensors}):
        with opened(path, "pt") as file:
            for name, tensor in tensors.items():
                if files[name] != path:
                    continue
                whole = file.get_slice(name)
                rows = (whole[rows_here(tensor)] if isinstance(tensor, DTensor) else whole[...]).to(compute)
                if not bool(rows.isfinite().all()):
                    raise UserError(f"{what}: `{path}` holds NaN or infinity in {name}; copy it again")
                local(tensor).copy_(rows)


def _without_weights(model: str, folder: Path, dtype: torch.dtype) -> Any:
    """The transformer in a folder with its parameters on `meta`, and its tables of positions computed.

    Raises:
        UserError: diffusers' class cannot be built from its config.json.
    """
    name = transformer_class(model)
    kind = getattr(diffusers, name)
    try:
        with default_dtype(dtype), init_empty_weights():
            return kind.from_config(kind.load_config(folder))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"policy.model: the config.json in `{folder}` does not fit {name} ({error}); copy it again"
        ) from error


def _compare(tensors: Mapping[str, Tensor], folder: Path, what: str) -> None:
    """Refuse files that lack one of these tensors or have it in another shape."""
    found = dict(shapes_below(folder))
    for name, tensor in tensors.items():
        if name not in found:
            raise UserError(f"{what}: the files in `{folder}` lack the weight {name}; copy them again")
        if found[name] != tuple(tensor.shape):
            raise UserError(
                f"{what}: {name} in `{folder}` has the shape {found[name]}, but config.json gives it "
                f"{tuple(tensor.shape)}; copy both files from one model"
            )


def file_of_each(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor of a model of diffusers, by the tensor's name.

    Raises:
        UserError: the file is torn.
    """
    index = folder / f"{WEIGHTS_FILE}.index.json"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    with opened(folder / WEIGHTS_FILE) as file:
        return dict.fromkeys(file.keys(), folder / WEIGHTS_FILE)
