"""A model family with its trained weights: what the rollout worker samples from and the learner trains."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from actors.policy.arrays import to_array, to_tensor
from actors.policy.families import family_class
from actors.policy.family import Family, Parts
from actors.policy.settings import LoraSettings, PolicySettings
from actors.policy.sharding import is_sharded, local, placed, shard
from actors.policy.weights import Arrays, Weights, checksum
from services.errors import UserError
from services.paths import resolve_model

LORA_FILE = "pytorch_lora_weights.safetensors"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


def device_of(settings: PolicySettings) -> torch.device:
    """The configured device; `auto` takes the GPU where there is one."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


class Policy:
    """A base model and what is trained of it: a LoRA adapter in fp32, or every weight in the compute dtype.

    Attributes:
        family: text encoding, velocity and decoding of the model.
        sigmas: (T+1,) fp32 on the policy's device, the schedule of training.
        parameters: the trained parameters by name.
        sharded: whether the transformer lies in parts on several processes.
    """

    def __init__(self, settings: PolicySettings, seed: int, parts: Parts = "all", family: Family | None = None) -> None:
        """Load `settings.model`, or take a family that is made already."""
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        self.settings = settings
        self.device = device_of(settings)
        self.family = family or family_class(settings).load(settings, resolve_model(settings.model), self.device, parts)
        self.transformer = self.family.transformer
        self.sigmas = self.family.sigmas(settings.num_steps).to(self.device)
        if settings.lora:
            self._add_adapter(settings.lora, seed)
        else:
            self.transformer.requires_grad_(True)
        self.sharded = False
        self.parameters: dict[str, nn.Parameter] = self._trained()
        self._base = None if settings.lora else {name: p.detach().clone() for name, p in self.parameters.items()}
        if settings.adapter:
            self._start_from(Path(settings.adapter))
        if settings.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if settings.compile:
            self.transformer.compile()

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}

    def shard(self, ranks: int) -> None:
        """Leave each of `ranks` processes its part of the transformer. An adapter stays whole on each; weights that are
        all trained become fp32, so that they are their own master copies, and compute in the configured dtype.
        """
        whole = list(self.parameters.values()) if self.settings.lora else []
        if not whole:
            for parameter in self.parameters.values():
                parameter.data = parameter.data.float()
        shard(self.transformer, ranks, self.family.dtype, whole)
        self.sharded = True
        self.parameters = self._trained()
        if self._base is not None:
            self._base = {name: placed(base.float(), self.parameters[name]) for name, base in self._base.items()}

    def _add_adapter(self, lora: LoraSettings, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian"
            )
            try:
                self.transformer.add_adapter(config)
            except ValueError as error:
                raise UserError(f"policy.lora.targets: {error}") from error
        for parameter in self.transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _start_from(self, folder: Path) -> None:
        try:
            self.load(read_trained(folder, list(self.parameters), self.settings.lora))
        except ValueError as error:
            raise UserError(f"policy.adapter: {error}") from error

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base as it was before any training, for the KL term and for evaluation of the base."""
        if self._base is not None:
            with self.holding(self._base):
                yield
            return
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """The trained parameters hold `values`, tensors on the policy's device, and change them where they change.

        Values of sharded parameters are sharded alike.
        """
        self._swap(values)
        try:
            yield
        finally:
            self._swap(values)

    @torch.no_grad()
    def _swap(self, values: dict[str, Tensor]) -> None:
        """Exchange the storage of the live parameters and of `values`; copies nothing but shards, which FSDP owns."""
        for name, parameter in self.parameters.items():
            if is_sharded(parameter):
                live, other = local(parameter), local(values[name])
                kept = live.clone()
                live.copy_(other)
                other.copy_(kept)
            else:
                parameter.data, values[name] = values[name], parameter.data

    @property
    def export_dtype(self) -> torch.dtype:
        """Of weights on their way to the workers."""
        return torch.float32 if self.settings.lora else self.family.dtype

    def arrays(self) -> Arrays:
        """Copies of the trained parameters."""
        return {name: to_array(parameter) for name, parameter in self.parameters.items()}

    def export(self, version: int) -> Weights:
        arrays = self.arrays()
        return Weights(version, checksum(arrays), arrays)

    @torch.no_grad()
    def load(self, arrays: Arrays) -> str:
        """Copy `arrays` into the live parameters; returns the checksum of what the parameters now hold.

        Raises:
            ValueError: other names or shapes than this policy's.
        """
        if arrays.keys() != self.parameters.keys():
            raise ValueError(f"weights of another policy: {sorted(arrays.keys() ^ self.parameters.keys())[:4]} differ")
        for name, parameter in self.parameters.items():
            array = arrays[name]
            if array.shape != tuple(parameter.shape):
                raise ValueError(f"weights of another policy: {name} is {array.shape}, not {tuple(parameter.shape)}")
            parameter.copy_(to_tensor(array))
        return checksum(self.arrays())

    def save(self, folder: Path, arrays: Arrays | None = None) -> None:
        """Write what is trained so that diffusers reads it.

        An adapter is read by the pipeline's `load_lora_weights`, rank and alpha included; a whole transformer by its
        class's `from_pretrained`.

        Args:
            folder: made if it does not exist.
            arrays: other values for the parameters (an EMA), by name.

        Raises:
            OSError: the storage failed.
        """
        try:
            self._save(folder, arrays or self.arrays())
        except SafetensorError as error:
            raise _storage_error(error) from error

    def _save(self, folder: Path, values: Arrays) -> None:
        if self.settings.lora is None:
            # Not save_pretrained: `values` need not be the live ones.
            folder.mkdir(parents=True, exist_ok=True)
            self.transformer.save_config(folder)
            save_file({name: to_tensor(a).to(self.family.dtype) for name, a in values.items()}, folder / WEIGHTS_FILE)
            return
        self.family.pipeline_class.save_lora_weights(
            folder,
            transformer_lora_layers={name.replace(".default.", "."): to_tensor(a) for name, a in values.items()},
            transformer_lora_adapter_metadata=self.transformer.peft_config["default"].to_dict(),
        )


def _storage_error(error: SafetensorError) -> Exception:
    """The OSError that safetensors has made text of; the error itself where there was none."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else error


def read_trained(folder: Path, names: list[str], lora: LoraSettings | None) -> Arrays:
    """What `Policy.save` wrote, under the parameter names of a policy.

    Raises:
        UserError: nothing there, or made for another model, other targets or another alpha.
    """
    path = folder / (LORA_FILE if lora else WEIGHTS_FILE)
    if not path.exists():
        wanted = "`lora/` folder of a run" if lora else "`transformer/` folder of a run with policy.lora = null"
        raise UserError(f"no {path.name} in `{folder}`; give the {wanted}")
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        saved = {name.removeprefix("transformer."): to_array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    alpha = json.loads(metadata.get("lora_adapter_metadata", "{}")).get("transformer.lora_alpha")
    if lora and alpha not in (None, lora.alpha):
        raise UserError(f"the adapter `{folder}` has alpha {alpha}; set policy.lora.alpha={alpha}")
    plain = {name: name.replace(".default.", ".") for name in names}
    if set(plain.values()) != saved.keys():
        raise UserError(f"the weights in `{folder}` were made for another model or other policy.lora.targets")
    return {name: saved[key] for name, key in plain.items()}
