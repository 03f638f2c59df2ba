"""FLUX.2, [dev] and klein: text of a language model, packed and batch-normalised latents."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor
from transformers import AutoTokenizer

from actors.policy.families.family import Conditioning, ConfigOf
from actors.policy.families.packed import PackedFamily
from actors.policy.settings import PolicySettings
from services.base.errors import UserError


class _Flux2(PackedFamily):
    """The common part of [dev] and klein."""

    def mu(self, num_steps: int) -> float:
        return compute_empirical_mu(self.latent_shape[0], num_steps)

    def encode_texts(self, texts: list[str]) -> Conditioning:
        length = self.settings.max_sequence_length
        return {"prompt": self.pipe.encode_prompt(texts, self.device, max_sequence_length=length)[0]}

    @classmethod
    def text_shapes(cls, settings: PolicySettings, config_of: ConfigOf) -> dict[str, tuple[int, ...]]:
        return {"prompt": (1, settings.max_sequence_length, config_of("transformer")["joint_attention_dim"])}

    @cached_property
    def image_ids(self) -> Tensor:
        """The position of each latent token, (1, L, 4). It is kept, since each copy from the CPU waits for the GPU."""
        return self.pipe._prepare_latent_ids(torch.empty(1, 1, *self.token_grid)).to(self.device)

    @cached_property
    def text_ids(self) -> Tensor:
        """The position of each text token, (1, L, 4). It is kept, too. Prompts are padded to one length."""
        return self.pipe._prepare_text_ids(torch.empty(1, self.settings.max_sequence_length, 1)).to(self.device)

    def forward(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        embedded = self.transformer.config.guidance_embeds
        return self.transformer(
            hidden_states=x_NZ.to(self.dtype),
            timestep=sigma_N,
            guidance=torch.full_like(sigma_N, self.settings.guidance) if embedded else None,
            encoder_hidden_states=conditioning["prompt"],
            txt_ids=self.text_ids.expand(len(x_NZ), -1, -1),
            img_ids=self.image_ids.expand(len(x_NZ), -1, -1),
            return_dict=False,
        )[0].float()

    def unpack(self, latent_NLD: Tensor) -> Tensor:
        """Tokens (N, L, 4C) to latent pixels (N, C, h, w), with the VAE's batch normalisation undone."""
        norm = self.pipe.vae.bn
        std_D = (norm.running_var + self.pipe.vae.config.batch_norm_eps).sqrt()
        tokens_NLD = latent_NLD * std_D + norm.running_mean
        return self.pipe._unpatchify_latents(tokens_NLD.mT.unflatten(2, self.token_grid))

    @torch.no_grad()
    def decode(self, latent_NZ: Tensor) -> Tensor:
        return self.pixels(self.unpack(latent_NZ.float()))


class Flux2(_Flux2):
    """Drives a `Flux2Pipeline`. Guidance is an input of the distilled model ([dev])."""

    pipeline_class = Flux2Pipeline
    classifier_free = False

    @classmethod
    def load_pipeline(cls, folder: Path | str, **given: Any) -> Any:
        """Load the tokenizer of the pipeline's processor alone. The rest of it is for images and needs torchvision."""
        pipe = super().load_pipeline(folder, **given | {"tokenizer": None})
        if "tokenizer" not in given:
            pipe.register_modules(tokenizer=AutoTokenizer.from_pretrained(folder, subfolder="tokenizer"))
        return pipe


class Flux2Klein(_Flux2):
    """Drives a `Flux2KleinPipeline`. The model has no guidance input: guidance above 1 is classifier-free, for the
    undistilled model, with an empty negative prompt by default.
    """

    pipeline_class = Flux2KleinPipeline

    def _drive(self, settings: PolicySettings, pipe: Any, vae: dict[str, Any], negative_prompt: str | None) -> None:
        super()._drive(settings, pipe, vae, negative_prompt)
        if pipe.config.is_distilled and self.guided:
            raise UserError("policy.guidance: this model is distilled and takes none; set policy.guidance=1")
