"""Reads the weights of a scorer whose checkpoint is not in transformers' layout.

Several reward models are published as PyTorch pickles (.pt, .pth), which can run code. Users convert them once
(docs/scorers.md, Weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from services.base.errors import UserError
from services.base.paths import resolve_model

if TYPE_CHECKING:
    import torch


def weights_file(what: str, name: str) -> Path:
    """The safetensors file with this path.

    Raises:
        UserError: there is no such file, or it has another format. The message begins with `what`.
    """
    path = Path(resolve_model(name))
    if path.suffix != ".safetensors":
        raise UserError(f"{what}: `{name}` is not a .safetensors file; convert it (docs: scorers.md, Weights)")
    if not path.is_file():
        raise UserError(f"{what}: there is no file `{name}`; convert the published weights (docs: scorers.md, Weights)")
    return path


def same_keys(what: str, wanted: Iterable[str], found: Iterable[str], weights: Path) -> None:
    """Check that a checkpoint has exactly the weights of its model.

    Raises:
        UserError: it lacks one, or has another one. The message begins with `what`.
    """
    missing, unexpected = set(wanted) - set(found), set(found) - set(wanted)
    for problem, keys in (("lacks", missing), ("has unexpected", unexpected)):
        if keys:
            raise UserError(
                f"{what}: `{weights}` {problem} {len(keys)} weights, such as {min(keys)}; give the file of this model"
            )


def load_exactly(what: str, module: torch.nn.Module, state: Mapping[str, torch.Tensor], weights: Path) -> None:
    """Put fp32 weights into a module that has exactly these.

    Raises:
        UserError: as `same_keys`; or a weight has another shape.
    """
    own = module.state_dict()
    same_keys(what, own, state, weights)
    if wrong := [key for key in own if own[key].shape != state[key].shape]:
        shape, needed = tuple(state[wrong[0]].shape), tuple(own[wrong[0]].shape)
        raise UserError(
            f"{what}: in `{weights}`, {wrong[0]} has the shape {shape}; the model needs {needed}; give its own file"
        )
    module.load_state_dict({key: weight.float() for key, weight in state.items()})
