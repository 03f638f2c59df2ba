"""What rollout and learner need of a model family. A new family is one file beside this one and a line in registry.py.

Shape legend: N rows, P distinct prompts, Z latent dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import pad

from actors.policy.loading import load_rows
from actors.policy.settings import PolicySettings
from services.base.errors import UserError

Conditioning = dict[str, Tensor]
"""Text embeddings by name, each (P, …), in the compute dtype; with guidance, each "x" has a "negative_x"."""

ConfigOf = Callable[[str], Mapping[str, Any]]
"""The configuration of a part of a model, by the part's name."""

Parts = Literal["transformer", "all"]

Embedding = TypeVar("Embedding")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Family(ABC):
    """One model family: text encoding, schedule, velocity and decoding, built from diffusers' own pieces.

    Attributes:
        pipe: diffusers' pipeline, on the device.
        transformer: the velocity network (a diffusers model), frozen, in the compute dtype.
        latent_shape: Z of one image of the configured size.
    """

    pipeline_class: ClassVar[Any]
    classifier_free: ClassVar[bool] = True
    """Whether guidance above 1 also runs the model on a negative prompt. If not, guidance is an input or unused."""
    default_negative_prompt: ClassVar[str] = ""
    """The pipeline's negative prompt if none is given."""
    latent_shape: tuple[int, ...]

    def __init__(self, settings: PolicySettings, pipe: Any, vae: dict[str, Any]) -> None:
        """Take a pipeline that is on its device; `vae` is the VAE's config, which the pipeline may lack."""
        for model in pipe.components.values():
            if isinstance(model, torch.nn.Module):
                model.requires_grad_(False).eval()
        self._drive(settings, pipe, vae, None)

    def _drive(self, settings: PolicySettings, pipe: Any, vae: dict[str, Any], negative_prompt: str | None) -> None:
        self.settings = settings
        self.pipe = pipe
        self.vae_config = vae
        self.negative_prompt = self.default_negative_prompt if negative_prompt is None else negative_prompt
        self.transformer = pipe.transformer
        self.device = self.transformer.device
        self.dtype = DTYPES[settings.dtype]
        self.latent_shape = self.shape_of_latents(vae)

    def sampled_as(self, settings: PolicySettings, negative_prompt: str | None) -> Self:
        """The same model for images of another size or guidance. It shares the weights and their device.

        Args:
            negative_prompt: the one of classifier-free guidance; None for the family's default.
        """
        other = type(self).__new__(type(self))
        other._drive(settings, self.pipe, self.vae_config, negative_prompt)
        return other

    def unguided(self) -> Self:
        """The same model without classifier-free guidance. It shares the weights and their device."""
        return self.sampled_as(self.without_guidance(self.settings), self.negative_prompt) if self.guided else self

    @classmethod
    def load(
        cls, settings: PolicySettings, folder: Path | str, device: torch.device, parts: Parts, ranks: int = 1
    ) -> Self:
        """Load a folder or hub id: the VAE in its own dtype, everything else in the compute dtype.

        Parts that the folder does not have are left out. With parts="transformer", only transformer and scheduler are
        loaded. With several ranks, the transformer is sharded over them (`load_rows`).
        """
        wanted = {"transformer", "scheduler"}
        absent = {
            name: None
            for name, entry in cls.pipeline_class.load_config(folder).items()
            if isinstance(entry, list) and (entry[0] is None or (parts == "transformer" and name not in wanted))
        }
        dtypes = {"default": DTYPES[settings.dtype], "vae": DTYPES[settings.vae_dtype]}
        made = {}
        if ranks > 1:
            if not Path(folder).is_dir():
                folder = cls.pipeline_class.download(folder, use_safetensors=True, **absent)
            made = {"transformer": load_rows(settings, Path(folder) / "transformer", dtypes["default"], device, ranks)}
        pipe = cls.load_pipeline(folder, dtype=dtypes, **absent, **made)
        return cls(settings, pipe.to(device), AutoencoderKL.load_config(folder, subfolder="vae"))

    @classmethod
    def load_pipeline(cls, folder: Path | str, **given: Any) -> Any:
        """Load the pipeline of a folder or hub id. A family may load parts in its own way.

        Args:
            given: arguments of `from_pretrained`; a part that is given as None is not loaded.
        """
        return cls.pipeline_class.from_pretrained(folder, use_safetensors=True, **given)

    @abstractmethod
    def shape_of_latents(self, vae: dict[str, Any]) -> tuple[int, ...]:
        """Z of one image of the configured size, from the VAE's config."""

    @abstractmethod
    def sigmas(self, num_steps: int) -> Tensor:
        """(T+1,) fp32 from 1 to 0 for T steps, with the pipeline's own shift."""

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """Text embeddings of P prompts, with those of the negative prompt if guidance is on."""
        rows = self.encode_texts(prompts)
        if self.guided:
            negative = self.encode_texts([self.negative_prompt] * len(prompts))
            rows |= {f"negative_{name}": tensor for name, tensor in negative.items()}
        return rows

    @abstractmethod
    def encode_texts(self, texts: list[str]) -> Conditioning:
        """The embeddings of P texts, by name, each (P, …) of one shape whatever the texts are."""

    @classmethod
    @abstractmethod
    def text_shapes(cls, settings: PolicySettings, config_of: ConfigOf) -> dict[str, tuple[int, ...]]:
        """The shape of each embedding that `encode_texts` gives for one text, from the model's configurations alone."""

    @classmethod
    def conditioning_shapes(cls, settings: PolicySettings, config_of: ConfigOf) -> dict[str, tuple[int, ...]]:
        """The shape of each embedding that `encode` gives for one prompt, from the model's configurations alone."""
        shapes = cls.text_shapes(settings, config_of)
        return shapes | ({f"negative_{name}": shape for name, shape in shapes.items()} if cls.guides(settings) else {})

    def padded(self, texts: Sequence[Tensor]) -> Conditioning:
        """Embeddings (S, D) of P texts, padded with zeros to `max_sequence_length`, and a mask: 1 for text, then 0."""
        missing = [self.settings.max_sequence_length - len(text_SD) for text_SD in texts]
        masks = [torch.ones(len(text_SD), dtype=self.dtype, device=self.device) for text_SD in texts]
        return {
            "prompt": torch.stack([pad(one, (0, 0, 0, more)) for one, more in zip(texts, missing, strict=True)]),
            "mask": torch.stack([pad(one, (0, more)) for one, more in zip(masks, missing, strict=True)]),
        }

    @abstractmethod
    def forward(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        """The transformer's velocity ε − x₀ at (x, σ) without classifier-free guidance: (N, Z) fp32."""

    def velocity(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        """The guided velocity ε − x₀ at (x, σ): (N, Z) fp32. `conditioning` has N rows."""
        if not self.guided:
            return self.forward(x_NZ, sigma_N, conditioning)
        without_NZ, with_NZ = self.forward(*both_halves(x_NZ, sigma_N, conditioning)).chunk(2)
        return self.combined(without_NZ, with_NZ)

    def combined(self, without_NZ: Tensor, with_NZ: Tensor) -> Tensor:
        """The guided velocity from those for the negative prompt and for the prompt, (N, Z) each."""
        return without_NZ + self.settings.guidance * (with_NZ - without_NZ)

    @abstractmethod
    def decode(self, latent_NZ: Tensor) -> Tensor:
        """Latents to pixels: (N, 3, H, W) fp32 on the device, in [-1, 1], which a VAE may exceed slightly."""

    def pixels(self, latent: Tensor) -> Tensor:
        """The VAE's output in fp32, whatever dtype the VAE computes in."""
        vae = self.pipe.vae
        return vae.decode(latent.to(vae.dtype), return_dict=False)[0].float()

    @classmethod
    def guides(cls, settings: PolicySettings) -> bool:
        """Whether the settings switch classifier-free guidance on."""
        return cls.classifier_free and settings.guidance > 1

    @classmethod
    def without_guidance(cls, settings: PolicySettings) -> PolicySettings:
        """The settings with classifier-free guidance switched off."""
        return settings.model_copy(update={"guidance": 0.0}) if cls.guides(settings) else settings

    @classmethod
    def forwards(cls, settings: PolicySettings) -> int:
        """Transformer forwards (NFE) that one velocity costs with these settings."""
        return 2 if cls.guides(settings) else 1

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on."""
        return self.guides(self.settings)

    @property
    def forwards_per_row(self) -> int:
        """Transformer forwards (NFE) that one velocity costs."""
        return self.forwards(self.settings)


def of_prompts(conditioning: Mapping[str, Embedding]) -> dict[str, Embedding]:
    """The embeddings of the prompts alone, without those of the negative prompt."""
    return {name: rows for name, rows in conditioning.items() if not name.startswith("negative_")}


def both_halves(x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor, Conditioning]:
    """2N rows for one forward of classifier-free guidance: the negative prompt's first, then the prompt's."""
    rows = of_prompts(conditioning)
    pairs = {name: torch.cat([conditioning[f"negative_{name}"], tensor]) for name, tensor in rows.items()}
    return torch.cat([x_NZ, x_NZ]), torch.cat([sigma_N, sigma_N]), pairs


def check_fixed_shift(scheduler: Any, family: str) -> None:
    """Refuse a scheduler that shifts by resolution.

    Raises:
        UserError: it does.
    """
    if scheduler.config.get("use_dynamic_shifting"):
        raise UserError(
            f"policy.model: the model's scheduler shifts by resolution, which is not supported for {family}; "
            "set use_dynamic_shifting to false in its scheduler/scheduler_config.json"
        )


def finite_rows(values_NZ: Tensor) -> Tensor:
    """Whether all values of a row are finite, (N,) bool."""
    return values_NZ.isfinite().flatten(1).all(1)


def to_uint8(pixels_NCHW: Tensor) -> Tensor:
    """Decoded pixels in [-1, 1] to (N, H, W, 3) uint8 on the CPU, rounded as diffusers does.

    NaN becomes black: ask `finite_rows` before an image is shown to anyone.
    """
    pixels_NHWC = (pixels_NCHW / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return (pixels_NHWC * 255).round().to(torch.uint8).cpu()
