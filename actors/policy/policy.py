"""A model family with its trained adapter: what the rollout worker samples from and the learner trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file
from torch import nn
from transformers.utils import logging as transformers_logging

from actors.policy.families import family_class
from actors.policy.family import Parts
from actors.policy.settings import PolicySettings
from actors.policy.weights import Arrays, Weights, checksum
from services.errors import UserError
from services.paths import resolve_model

LORA_FILE = "pytorch_lora_weights.safetensors"


def device_of(settings: PolicySettings) -> torch.device:
    """The configured device; `auto` takes the GPU where there is one."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


class Policy:
    """The frozen base with a LoRA adapter in fp32.

    Attributes:
        family: text encoding, velocity and decoding of the model.
        sigmas: (T+1,) fp32 on the policy's device.
        parameters: the trained parameters by name.
    """

    def __init__(self, settings: PolicySettings, seed: int, parts: Parts = "all") -> None:
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        self.settings = settings
        self.device = device_of(settings)
        self.family = family_class(settings)(settings, resolve_model(settings.model), self.device, parts)
        self.transformer = self.family.transformer
        self.sigmas = self.family.sigmas().to(self.device)
        self._add_adapter(seed)
        if settings.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()

    def _add_adapter(self, seed: int) -> None:
        lora = self.settings.lora
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian"
            )
            try:
                self.transformer.add_adapter(config)
            except ValueError as error:
                raise UserError(f"policy.lora.targets: {error}") from error
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in self.transformer.named_parameters() if parameter.requires_grad
        }
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base without its adapter, for the KL term and for evaluation of the base."""
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()

    def arrays(self) -> Arrays:
        """Copies of the trained parameters as fp32 arrays."""
        return {name: parameter.detach().cpu().numpy().copy() for name, parameter in self.parameters.items()}

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
            parameter.copy_(torch.from_numpy(np.array(array)))
        return checksum(self.arrays())

    def save_adapter(self, folder: Path, arrays: Arrays | None = None) -> None:
        """Write the adapter so that diffusers' own `load_lora_weights` reads it, rank and alpha included.

        Args:
            folder: made if it does not exist.
            arrays: other values for the parameters (an EMA), by name.
        """
        state = get_peft_model_state_dict(self.transformer)
        if arrays is not None:
            state = {name.replace(".default.", "."): torch.from_numpy(np.array(a)) for name, a in arrays.items()}
        self.family.pipeline_class.save_lora_weights(
            folder,
            transformer_lora_layers={name: value.contiguous() for name, value in state.items()},
            transformer_lora_adapter_metadata=self.transformer.peft_config["default"].to_dict(),
        )


def read_adapter(folder: Path, names: list[str]) -> Arrays:
    """An adapter folder as arrays under the parameter names of a policy.

    Raises:
        UserError: no adapter there, or one of another shape of model.
    """
    path = folder / LORA_FILE
    if not path.exists():
        raise UserError(f"no adapter at `{path}`; give the `lora/` folder of a run")
    saved = {name.removeprefix("transformer."): array for name, array in load_file(path).items()}
    wanted = {name: name.replace(".default.", ".") for name in names}
    if set(wanted.values()) != saved.keys():
        raise UserError(f"the adapter `{folder}` was made for another model or other lora.targets")
    return {name: saved[plain] for name, plain in wanted.items()}
