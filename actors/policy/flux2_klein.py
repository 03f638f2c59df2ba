"""FLUX.2 klein: text of a language model, packed and batch-normalised latents, guidance for the undistilled model."""

from functools import cached_property
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from actors.policy.family import Conditioning
from actors.policy.packed import PackedFamily
from actors.policy.settings import PolicySettings
from services.base.errors import UserError


class Flux2Klein(PackedFamily):
    """Drives a `Flux2KleinPipeline`; guidance above 1 is classifier-free, with an empty negative prompt by default."""

    pipeline_class = Flux2KleinPipeline

    def _drive(self, settings: PolicySettings, pipe: Any, vae: dict[str, Any], negative_prompt: str | None) -> None:
        super()._drive(settings, pipe, vae, negative_prompt)
        if pipe.config.is_distilled and self.guided:
            raise UserError("policy.guidance: this model is distilled and takes none; set policy.guidance=1")

    def mu(self, num_steps: int) -> float:
        return compute_empirical_mu(self.latent_shape[0], num_steps)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        length = self.settings.max_sequence_length
        rows = {"prompt": self.pipe.encode_prompt(prompts, self.device, max_sequence_length=length)[0]}
        if self.guided:
            negative = [self.negative_prompt] * len(prompts)
            rows["negative_prompt"] = self.pipe.encode_prompt(negative, self.device, max_sequence_length=length)[0]
        return rows

    @cached_property
    def image_ids(self) -> Tensor:
        """The position of each latent token, (1, L, 4). It is kept, since each copy from the CPU waits for the GPU."""
        return self.pipe._prepare_latent_ids(torch.empty(1, 1, *self.token_grid)).to(self.device)

    @cached_property
    def text_ids(self) -> Tensor:
        """The position of each text token, (1, L, 4). It is kept, too. Prompts are padded to one length."""
        return self.pipe._prepare_text_ids(torch.empty(1, self.settings.max_sequence_length, 1)).to(self.device)

    def forward(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        return self.transformer(
            hidden_states=x_NZ.to(self.dtype),
            timestep=sigma_N,
            guidance=None,
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
