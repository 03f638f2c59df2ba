"""Files of trained weights: finds them, checks their headers before anything starts, and reads them.

An adapter is a file that diffusers reads (a run's `lora/`, or what a pipeline's `save_lora_weights` writes) or a folder
of PEFT, which flow_grpo saves. A whole transformer is a run's `transformer/`. The checks import no Torch.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.policy.model_files import pipeline_file
from actors.policy.settings import LoraSettings, PolicySettings
from actors.policy.weights import Arrays
from services.base.errors import UserError
from services.base.headers import Shapes, is_whole, opened, shapes_below, shapes_of

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
STEP_KEY, SET_KEY = "tempflow_step", "tempflow_weights"
"""Keys in a saved file's header: the number of training steps that made the weights, and the name of the weight set."""
TRAINED_SET = "trained"
"""The name of the trained weights themselves, as opposed to an average, and of their file in a checkpoint."""
LORA_KEY = re.compile(r"(?:transformer\.|base_model\.model\.)?(.+\.lora_[AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class TrainedFile:
    """A file of trained weights, as its header describes it."""

    path: Path
    keys: Mapping[str, str]
    """The name of each tensor in the file, by its name in the policy."""
    shapes: Shapes
    """The shape of each tensor, by its name in the policy."""
    scale: float = 1.0
    """An adapter adds scale · B·A to a weight."""


def saved_from(step: int, weight_set: str) -> dict[str, str]:
    """The entries in the header of a saved file that describe its weights.

    Args:
        step: the number of training steps that made them.
        weight_set: the name of the weight set, such as `ema` or `trained`.
    """
    return {STEP_KEY: str(step), SET_KEY: weight_set}


def find_trained(folder: Path, lora: LoraSettings | None, what: str) -> TrainedFile:
    """Find the trained weights in a folder.

    Args:
        lora: the recipe's adapter; None if whole transformers are trained.
        what: the setting or option that names the folder; an error begins with it.

    Raises:
        UserError: there are none of this kind, they are torn, or they are of a kind that is not read.
    """
    if not lora:
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise UserError(f"{what}: no {path.name} in `{folder}`; give a run's `transformer/` (policy.lora = null)")
        with opened(path) as file:
            shapes = shapes_of(file)
        return TrainedFile(path, {name: name for name in shapes}, shapes)
    path = next((folder / name for name in (LORA_FILE, PEFT_FILE) if (folder / name).is_file()), folder)
    if path == folder:
        raise UserError(f"{what}: {_no_adapter(folder)}")
    with opened(path) as file:
        shapes, metadata = shapes_of(file), file.metadata() or {}
    config = _peft_config(path, what) if path.name == PEFT_FILE else _diffusers_config(metadata, path, what)
    keys = {}
    for key in shapes:
        found = LORA_KEY.fullmatch(key)
        if not found:
            raise UserError(
                f"{what}: `{path}` holds `{key}`; give an adapter that has only plain LoRA weights (lora_A, lora_B)"
            )
        keys[f"{found[1]}.default.weight"] = key
    ours = {name: shapes[key] for name, key in keys.items()}
    return TrainedFile(path, keys, ours, _scale(config, _rank(ours, path, what), path, what))


def check_trained(settings: PolicySettings, folder: Path, what: str) -> None:
    """Refuse trained weights that do not fit the recipe's model, from headers alone.

    Where the model's own files are not on this machine yet, only an adapter's rank and targets are compared.

    Raises:
        UserError: as `find_trained`, or they are of another rank, other targets or another model.
    """
    file, lora = find_trained(folder, settings.lora, what), settings.lora
    model = pipeline_file(settings.model).parent / "transformer"
    base = dict(shapes_below(model)) if is_whole(model) else {}
    if lora is None:
        # The model's files hold buffers, too, which are not trained: what is missing is known when the model is loaded.
        shared = {name: shape for name, shape in base.items() if name in file.shapes}
        _compare(file, shared if base else file.shapes, what)
        return
    rank = _rank(file.shapes, file.path, what)
    if rank != lora.rank:
        raise UserError(f"{what}: the adapter in `{folder}` has rank {rank}; set policy.lora.rank={rank}")
    if base:
        _compare(file, _adapter_shapes(base, lora), what)
        return
    modules = {name.partition(".lora_")[0] for name in file.keys}
    if others := sorted(modules - set(targeted(modules, lora))):
        raise UserError(
            f"{what}: the adapter in `{folder}` is on {others[0]} and {len(others) - 1} other modules that "
            "policy.lora.targets does not name; set it to what the adapter was trained with"
        )


def read_trained(folder: Path, lora: LoraSettings | None, what: str) -> Arrays:
    """Trained weights by their names in the policy. An adapter with another alpha is scaled to have the same effect.

    Raises:
        UserError: as `find_trained`, or a weight is NaN or infinite.
    """
    from actors.policy.arrays import to_array

    file, arrays = find_trained(folder, lora, what), {}
    with opened(file.path, "pt") as tensors:
        for name, key in file.keys.items():
            tensor = tensors.get_tensor(key)
            if not bool(tensor.isfinite().all()):
                raise UserError(
                    f"{what}: `{file.path}` holds NaN or infinity in {key}; give that of an earlier checkpoint"
                )
            if lora:
                tensor = tensor.float() * (file.scale * lora.rank / lora.alpha if ".lora_B." in name else 1.0)
            arrays[name] = to_array(tensor)
    return arrays


def _adapter_shapes(base: Shapes, lora: LoraSettings) -> Shapes:
    """The shapes of an adapter with these settings, on a model with these weights."""
    shapes: Shapes = {}
    linear = [name.removesuffix(".weight") for name, shape in base.items() if len(shape) == 2]
    for module in targeted(linear, lora):
        rows, columns = base[f"{module}.weight"]
        shapes[f"{module}.lora_A.default.weight"] = (lora.rank, columns)
        shapes[f"{module}.lora_B.default.weight"] = (rows, lora.rank)
    return shapes


def targeted(modules: Iterable[str], lora: LoraSettings) -> list[str]:
    """The modules that get an adapter: a target names a module in full or by its last parts, as in PEFT."""
    return [module for module in modules if any(f".{module}".endswith(f".{target}") for target in lora.targets)]


def _compare(file: TrainedFile, wanted: Shapes, what: str) -> None:
    missing, extra = sorted(wanted.keys() - file.shapes.keys()), sorted(file.shapes.keys() - wanted.keys())
    if missing or extra:
        lacks = (
            f"it lacks {len(missing)} of the weights that this recipe trains, such as {missing[0]}" if missing else ""
        )
        has = f"it has {len(extra)} that the recipe does not train, such as {extra[0]}" if extra else ""
        raise UserError(
            f"{what}: `{file.path}` was made for another model or other policy.lora.targets: "
            f"{' and '.join(part for part in (lacks, has) if part)}; "
            "give one that was trained with this recipe's model and targets"
        )
    for name, shape in wanted.items():
        if file.shapes[name] != shape:
            raise UserError(
                f"{what}: `{file.path}` was made for another model: {name} has the shape {file.shapes[name]}, and this "
                f"model needs {shape}; give one of this model"
            )


def _rank(shapes: Shapes, path: Path, what: str) -> int:
    """The rank that all modules share."""
    ranks = {shape[0] if ".lora_A." in name else shape[-1] for name, shape in shapes.items() if len(shape) == 2}
    if len(ranks) != 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise UserError(
            f"{what}: the modules of `{path}` have the ranks {sorted(ranks)}; give an adapter with one rank"
        )
    return ranks.pop()


def _scale(config: Mapping[str, Any], rank: int, path: Path, what: str) -> float:
    """alpha / rank. It is 1 if there is no alpha, as in diffusers."""
    for key in ("rank_pattern", "alpha_pattern", "use_dora"):
        if config.get(key):
            raise UserError(f"{what}: `{path}` uses {key}; give a plain LoRA with one rank and one alpha")
    alpha = config.get("lora_alpha", rank)
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        raise UserError(f"{what}: `{path}` has lora_alpha = {alpha!r}, which is not a positive number; correct it")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _diffusers_config(metadata: Mapping[str, str], path: Path, what: str) -> dict[str, Any]:
    config = _json(metadata.get("lora_adapter_metadata", "{}"), f"{what}: the metadata of `{path}`")
    return {key.removeprefix("transformer."): value for key, value in config.items()}


def _peft_config(path: Path, what: str) -> dict[str, Any]:
    file = path.with_name(PEFT_CONFIG)
    if not file.is_file():
        raise UserError(f"{what}: `{path}` has no {PEFT_CONFIG} beside it, which has its alpha; copy that file, too")
    return _json(file.read_text(errors="replace"), f"{what}: `{file}`")


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error}); copy it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{where} is not a JSON object; copy it again")
    return config


def _no_adapter(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder `{folder}`; give the `lora/` of a run, or a folder of PEFT"
    if (folder / WEIGHTS_FILE).is_file():
        return f"`{folder}` holds a whole transformer; set policy.lora=null, or give the `lora/` of a run"
    if (folder / "adapter_model.bin").is_file():
        return f"`{folder}` holds a pickle (adapter_model.bin), which is not read; save it again as safetensors"
    return f"no {LORA_FILE} and no {PEFT_FILE} in `{folder}`; give the `lora/` of a run, or a folder of PEFT"
