"""Writes trained weights of a run as a folder that is ready for a hub."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from actors.policy.families.family import DTYPES
from actors.policy.layouts import unit_scale, write_comfyui, write_diffusers, write_peft
from actors.policy.model_files import pipeline_file
from actors.policy.settings import LoraSettings
from actors.policy.trained import LORA_FILE, PEFT_FILE, WEIGHTS_FILE, saved_from
from services.base.errors import UserError
from services.base.headers import naming_storage_errors
from services.base.storage import make_folder, sync_files, sync_folder
from system.export.card import ModelCard, write_model_card
from system.export.choices import Chosen, Layout
from system.export.license import hub_id, license_of
from system.export.merge import write_merged
from system.export.weights import Trained, find_weights
from system.report.data import read_run


@dataclass(frozen=True)
class ExportedModel:
    """What was written."""

    folder: Path
    step: int
    weight_set: str
    heldout: float | None
    file: str
    """The file or folder of the weights in the folder."""
    licensed: bool
    """Whether the card names a licence."""
    left_out: list[str]
    """A sentence for each part that the card lacks."""


def export(
    run: Path,
    to: Path,
    step: int | Chosen = Chosen.BEST,
    layout: Layout = Layout.DIFFUSERS,
    average: bool = True,
    license: str | None = None,
    base: str | None = None,
) -> ExportedModel:
    """Write trained weights of a run with a model card. The folder appears as a whole or not at all.

    Args:
        to: a folder that does not exist, or is empty.
        average: whether to take the moving average that evaluations use, if there is one.
        license: a hub's name of a licence; None for that of the base model's card, if that is on this machine.
        base: the base model's hub id, if the recipe names a folder.

    Raises:
        UserError: there are no such weights, they have no such layout, or the folder has other content.
        OSError: the storage failed.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to: `{to}` exists and is not an empty folder; give another one, or remove it")
    trained, recorded = find_weights(run, step, average), read_run(run)
    model = trained.config.policy.model
    base = base or hub_id(model)
    fields: dict[str, Any] = {"license": license} if license else license_of(model)
    to = to.absolute()
    aside = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # A killed export has left it.
    make_folder(aside)
    try:
        with naming_storage_errors():
            file = _write_weights(aside, trained, layout, base, run)
        is_adapter = trained.config.policy.lora is not None and layout is not Layout.MERGED
        left_out = write_model_card(aside, ModelCard(layout, is_adapter, file, base, fields), trained, recorded)
        sync_files(aside)
        aside.replace(to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(to.parent)
    return ExportedModel(to, trained.step, trained.weight_set, trained.heldout, file, bool(fields), left_out)


def _write_weights(folder: Path, trained: Trained, layout: Layout, base: str | None, run: Path) -> str:
    """Write the weights. Returns the name of their file or folder.

    Raises:
        UserError: weights of this kind have no such layout.
    """
    policy, about = trained.config.policy, saved_from(trained.step, trained.weight_set)
    if policy.lora is None:
        if layout is not Layout.DIFFUSERS:
            raise UserError(f"--layout {layout}: this run trains every weight, so it has no adapter; use diffusers")
        _write_transformer(folder / "transformer", trained, run, about)
        return "transformer"
    adapter = unit_scale(trained.read(), policy.lora)
    if layout is Layout.MERGED:
        write_merged(policy.model, adapter, folder / "transformer")
        return "transformer"
    return _write_adapter(folder, trained, adapter, layout, policy.lora, base, about)


def _write_adapter(
    folder: Path,
    trained: Trained,
    adapter: dict[str, Any],
    layout: Layout,
    lora: LoraSettings,
    base: str | None,
    about: dict[str, str],
) -> str:
    if layout is Layout.PEFT:
        write_peft(folder, adapter, lora, about, base)
        return PEFT_FILE
    if layout is Layout.COMFYUI:
        file = f"{trained.config.name}-step{trained.step}.safetensors"
        write_comfyui(folder / file, adapter, about)
        return file
    write_diffusers(folder / LORA_FILE, adapter, lora, about)
    return LORA_FILE


def _write_transformer(folder: Path, trained: Trained, run: Path, about: dict[str, str]) -> None:
    """Every weight in the compute dtype, and the configuration that the run or its base model has."""
    folder.mkdir()
    config = run / "transformer" / "config.json"
    if not config.is_file():
        config = pipeline_file(trained.config.policy.model).parent / "transformer" / "config.json"
    shutil.copyfile(config, folder / "config.json")
    dtype = DTYPES[trained.config.policy.dtype]
    tensors = {name: tensor.to(dtype) for name, tensor in trained.read().items()}
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt", **about})
