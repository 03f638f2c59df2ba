"""The model that the rollout worker samples from and the learner trains: a family and its trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from actors.policy.arrays import to_arrays, to_tensor
from actors.policy.blocks import compile_blocks
from actors.policy.card import card_fault
from actors.policy.families.family import Family, Parts
from actors.policy.families.registry import family_class
from actors.policy.layouts import unit_scale, write_diffusers
from actors.policy.loading import read_rows
from actors.policy.merging import MergingAdapter
from actors.policy.settings import LoraSettings, PolicySettings
from actors.policy.sharding import is_sharded, local
from actors.policy.trained import LORA_FILE, WEIGHTS_FILE, find_trained, read_trained
from actors.policy.weights import Arrays, Weights, checksum
from services.base.devices import device_of, naming_full_memory
from services.base.errors import UserError
from services.base.headers import naming_storage_errors
from services.base.paths import resolve_model
from services.base.storage import replacing, write_atomically

SAME = "weights of the same model and policy.lora"
"""The weights that fit a policy, in words for messages."""
NO_ROOM = (
    "free it (nvidia-smi lists the processes that use it), or set what `tempflow plan RECIPE --gpus` with this card "
    "proposes, and continue with --resume"
)
"""What helps where a model does not fit as it is loaded."""


class Policy:
    """A base model and its trained weights, which are a LoRA adapter or all weights. All are in the compute dtype.

    Attributes:
        family: text encoding, velocity and decoding of the model.
        sigmas: (T+1,) fp32 on the policy's device, the schedule of training.
        parameters: the trained parameters by name.
        sharded: whether the transformer is sharded over several processes.
    """

    @naming_full_memory(NO_ROOM)
    def __init__(
        self,
        settings: PolicySettings,
        seed: int,
        parts: Parts = "all",
        family: Family | None = None,
        keeps_base: bool = True,
        ranks: int = 1,
    ) -> None:
        """Load `settings.model`, or take a family that is already made.

        Args:
            ranks: the number of processes over which the transformer is sharded, which form a process group. An
                adapter stays whole on each. If every weight is trained, sharded weights are fp32 and are cast to the
                compute dtype in a forward.
            keeps_base: whether `base` will be used. If every weight is trained, it needs a copy of the base.
        """
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        self.settings = settings
        self.device = device_of(settings.device)
        self.family = family or _loaded(settings, self.device, parts, ranks)
        self.transformer = self.family.transformer
        self.sigmas = self.family.sigmas(settings.num_steps).to(self.device)
        if settings.lora:
            self._add_adapter(settings.lora, seed)
        else:
            self.transformer.requires_grad_(True)
        self.sharded = ranks > 1
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in self.transformer.named_parameters() if parameter.requires_grad
        }
        self.started_from: dict[str, Tensor] = {}
        """The adapter that training starts from, in fp32; empty if it starts from the base."""
        self._base: dict[str, Tensor] = {}
        if keeps_base and not settings.lora:
            self._base = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        if settings.adapter:
            self._start_from(Path(settings.adapter))
        if settings.attention:
            _choose_attention(self.transformer, settings.attention)
        if settings.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if settings.compile:
            compile_blocks(self.transformer)

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
        # PEFT adds the matrices in fp32 and would convert each layer's input to fp32 and its output back.
        for parameter in self.transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(self.family.dtype)

    def _start_from(self, folder: Path) -> None:
        if self.sharded and not self.settings.lora:
            find_trained(folder, None, "policy.adapter")
            read_rows(self.parameters, folder, self.family.dtype, "policy.adapter")
            return
        arrays = read_trained(folder, self.settings.lora, "policy.adapter")
        if self.settings.lora:
            self.started_from = {name: to_tensor(array) for name, array in arrays.items()}
        self.load(arrays)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within this context, the policy is the base before any training: for the KL term and to evaluate the base.

        Raises:
            RuntimeError: every weight is trained and no copy of the base is kept.
        """
        if not self.settings.lora:
            if not self._base:
                raise RuntimeError("this policy was made with keeps_base=False")
            with self.holding(self._base):
                yield
            return
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()

    @contextmanager
    def scaled(self, scale: float) -> Iterator[None]:
        """Within this context, the adapter's part of each weight is multiplied by `scale`."""
        layers = [] if scale == 1 else [m for m in self.transformer.modules() if isinstance(m, LoraLayer)]
        before = [layer.scaling["default"] for layer in layers]
        try:
            for layer in layers:
                layer.scaling["default"] *= scale
            yield
        finally:
            for layer, scaling in zip(layers, before, strict=True):
                layer.scaling["default"] = scaling

    @cached_property
    def _merging(self) -> MergingAdapter:
        return MergingAdapter(self.transformer)

    def merged(self) -> AbstractContextManager[None]:
        """A context in which the adapter is added into the base's weights. Sampling is faster, rounding differs."""
        return self._merging.merged()

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Within this context, the trained parameters are `values`, tensors on the policy's device.

        A change of the parameters changes `values`. Values of sharded parameters must be sharded in the same way.
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
    def saved_dtype(self) -> torch.dtype:
        """The number type of a saved model. An adapter is small enough to keep the learner's fp32 values."""
        return torch.float32 if self.settings.lora else self.family.dtype

    def arrays(self) -> Arrays:
        """Copies of the trained parameters."""
        return to_arrays(self.parameters)

    def export(self, version: int) -> Weights:
        arrays = self.arrays()
        return Weights(version, checksum(arrays), arrays)

    @torch.no_grad()
    def load(self, arrays: Arrays) -> str:
        """Copy `arrays` into the live parameters; returns the checksum of what the parameters now hold.

        Raises:
            UserError: other names or shapes than this policy's, or values that are not finite.
        """
        for name, values in self._fitting(arrays):
            self.parameters[name].copy_(values)
        return checksum(self.arrays())

    def adapter_of(self, folder: Path, what: str) -> dict[str, Tensor]:
        """A trained adapter in a folder, in the compute dtype on the device, for `holding`.

        Args:
            what: the setting that names the folder.

        Raises:
            UserError: it cannot be read (`read_trained`), or is of another model.
        """
        arrays = read_trained(folder, self.settings.lora, what)
        return {name: values.to(self.parameters[name].dtype) for name, values in self._fitting(arrays)}

    def _fitting(self, arrays: Arrays) -> Iterator[tuple[str, Tensor]]:
        """Values for the parameters, on their device. Raises as `load`."""
        if arrays.keys() != self.parameters.keys():
            raise UserError(
                f"the weights are of another policy: {sorted(arrays.keys() ^ self.parameters.keys())[:4]} differ; "
                f"use {SAME}"
            )
        for name, parameter in self.parameters.items():
            array = arrays[name]
            if array.shape != tuple(parameter.shape):
                raise UserError(
                    f"the weights are of another policy: {name} is {array.shape}, not {tuple(parameter.shape)}; "
                    f"use {SAME}"
                )
            values = to_tensor(array).to(parameter.device)
            if not bool(values.isfinite().all()):
                raise UserError(f"the weights have NaN or infinity in {name}; use those of an earlier step")
            yield name, values

    def save(self, folder: Path, arrays: Arrays | None = None, about: Mapping[str, str] | None = None) -> None:
        """Write what is trained so that diffusers reads it.

        An adapter is read by the pipeline's `load_lora_weights`, a whole transformer by its class's `from_pretrained`.
        The same weights give the same bytes in every process. An existing file is replaced atomically.

        Args:
            folder: made if it does not exist.
            arrays: other values for the parameters (an EMA), by name.
            about: entries of the file's header that describe the weights (`saved_from`).

        Raises:
            OSError: the storage failed.
        """
        values, about = arrays or self.arrays(), about or {}
        tensors = {name: to_tensor(array).to(self.saved_dtype) for name, array in values.items()}
        with naming_storage_errors():
            if self.settings.lora:
                with replacing(folder / LORA_FILE) as file:
                    write_diffusers(file, unit_scale(tensors, self.settings.lora), self.settings.lora, about)
                return
            # Not save_pretrained: `values` need not be the live ones.
            write_atomically(folder / "config.json", self.transformer.to_json_string().encode())
            with replacing(folder / WEIGHTS_FILE) as file:
                save_file(tensors, file, {"format": "pt", **about})


def _loaded(settings: PolicySettings, device: torch.device, parts: Parts, ranks: int) -> Family:
    """The model's family with its weights.

    Raises:
        UserError: the files do not make the model, or the GPU cannot run it.
    """
    if device.type == "cuda":
        capability, built_for = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
        if fault := card_fault(settings, capability, built_for):
            raise UserError(f"this GPU ({torch.cuda.get_device_name(device)}) {fault}")
    folder = resolve_model(settings.model)
    try:
        return family_class(settings).load(settings, folder, device, parts, ranks)
    except (ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(
            f"policy.model: `{settings.model}` cannot be loaded ({type(error).__name__}: {said}); "
            "`tempflow doctor RECIPE` compares its files"
        ) from error


def _choose_attention(transformer: nn.Module, name: str) -> None:
    """Make each attention layer use the back end of this name.

    Raises:
        UserError: the model has no choice, or the back end is not installed.
    """
    processors = [module.processor for module in transformer.modules() if hasattr(module, "processor")]
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise UserError(f"policy.attention: {type(transformer).__name__} has only one back end; remove the setting")
    try:
        transformer.set_attention_backend(name)  # type: ignore[operator]
    except (RuntimeError, ValueError, ImportError) as error:
        raise UserError(
            f"policy.attention: `{name}` cannot be used here ({' '.join(str(error).split())}); "
            "name another back end, or remove the setting"
        ) from error
