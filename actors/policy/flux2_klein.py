"""FLUX.2 klein: text of a language model, packed and batch-normalised latents, guidance for the undistilled model."""

from functools import cached_property
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from actors.policy.family import Conditioning
from actors.policy.packed import PackedFamily
from services.base.errors import UserError


class Flux2Klein(PackedFamily):
    """Drives a `Flux2KleinPipeline`; guidance above 1 is classifier-free, with an empty negative prompt by default."""

    pipeline_class = Flux2KleinPipeline

    def shape_of_latents(self, vae: dict[str, Any]) -> tuple[int, ...]:
        self._text_ids: dict[int, Tensor] = {}
        if self.pipe.config.is_distilled and self.guided:
            raise UserError("policy.guidance: this model is distilled and takes none; set policy.guidance=1")
        return super().shape_of_latents(vae)

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

    def text_ids(self, length: int) -> Tensor:
        """The position of each text token, (1, length, 4)."""
        if length not in self._text_ids:
            self._text_ids[length] = self.pipe._prepare_text_ids(torch.empty(1, length, 1)).to(self.device)
        return self._text_ids[length]

    def forward(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        prompt_NLD = conditioning["prompt"]
        return self.transformer(
            hidden_states=x_NZ.to(self.dtype),
            timestep=sigma_N,
            guidance=None,
            encoder_hidden_states=prompt_NLD,
            txt_ids=self.text_ids(prompt_NLD.shape[1]).expand(len(x_NZ), -1, -1),
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
