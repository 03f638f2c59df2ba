"""What rollout and learner need of a model family. A new family is one file beside this one and a line in families.py.

Shape legend: N rows, P distinct prompts, Z latent dimensions.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from actors.policy.settings import PolicySettings

Conditioning = dict[str, Tensor]
"""Text embeddings by name, each (P, …), in the compute dtype."""

Parts = Literal["transformer", "all"]


class Family(ABC):
    """One model family: text encoding, schedule, velocity and decoding, built from diffusers' own pieces.

    Attributes:
        transformer: the velocity network (a diffusers model), frozen, in the compute dtype.
        latent_shape: Z of one image of the configured size.
    """

    pipeline_class: ClassVar[Any]
    transformer: Any
    latent_shape: tuple[int, ...]

    def __init__(self, settings: PolicySettings, folder: Path | str, device: torch.device, parts: Parts) -> None:
        self.settings = settings
        self.device = device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.dtype]
        self.load(folder, parts)
        self.transformer.requires_grad_(False).eval().to(device)

    @abstractmethod
    def load(self, folder: Path | str, parts: Parts) -> None:
        """Load the transformer, and with parts="all" text encoders and VAE too."""

    @abstractmethod
    def sigmas(self) -> Tensor:
        """(T+1,) fp32 from 1 to 0, with the pipeline's own shift."""

    @abstractmethod
    def encode(self, prompts: list[str]) -> Conditioning:
        """Text embeddings of P prompts, with those of the negative prompt where guidance is on."""

    @abstractmethod
    def velocity(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        """The guided velocity ε − x₀ at (x, σ): (N, Z) fp32. `conditioning` has N rows."""

    @abstractmethod
    def decode(self, latent_NZ: Tensor) -> Tensor:
        """Latents to images: (N, H, W, 3) uint8 on the CPU."""

    @property
    def forwards_per_row(self) -> int:
        """Transformer forwards (NFE) that one velocity costs: 2 with classifier-free guidance."""
        return 1
