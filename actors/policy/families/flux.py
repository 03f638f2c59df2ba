"""FLUX.1: CLIP and T5 text, packed latents, guidance embedded in the model."""

from functools import cached_property

import torch
from diffusers import FluxPipeline
from torch import Tensor

from actors.policy.families.family import Conditioning, ConfigOf
from actors.policy.families.packed import PackedFamily
from actors.policy.settings import PolicySettings


class Flux(PackedFamily):
    """Drives a `FluxPipeline`. Guidance is an input of the distilled model (dev); without this input, it is unused."""

    pipeline_class = FluxPipeline
    classifier_free = False

    def encode_texts(self, texts: list[str]) -> Conditioning:
        prompt_PLD, pooled_PD, _ = self.pipe.encode_prompt(
            texts, None, device=self.device, max_sequence_length=self.settings.max_sequence_length
        )
        return {"prompt": prompt_PLD, "pooled": pooled_PD}

    @classmethod
    def text_shapes(cls, settings: PolicySettings, config_of: ConfigOf) -> dict[str, tuple[int, ...]]:
        model, tokens = config_of("transformer"), settings.max_sequence_length
        return {"prompt": (1, tokens, model["joint_attention_dim"]), "pooled": (1, model["pooled_projection_dim"])}

    @cached_property
    def image_ids(self) -> Tensor:
        """The position of each latent token, (L, 3). It is kept, since each copy from the CPU waits for the GPU."""
        return self.pipe._prepare_latent_image_ids(1, *self.token_grid, self.device, self.dtype)

    def forward(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        prompt_NLD = conditioning["prompt"]
        embedded = self.transformer.config.guidance_embeds
        return self.transformer(
            hidden_states=x_NZ.to(self.dtype),
            timestep=sigma_N,
            guidance=torch.full_like(sigma_N, self.settings.guidance) if embedded else None,
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=prompt_NLD,
            txt_ids=prompt_NLD.new_zeros(prompt_NLD.shape[1], 3),
            img_ids=self.image_ids,
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def decode(self, latent_NZ: Tensor) -> Tensor:
        config = self.pipe.vae.config
        return self.pixels(self.unpack(latent_NZ.float()) / config.scaling_factor + config.shift_factor)
