"""Stable Diffusion 3 and 3.5: three text encoders, (C, H, W) latents, classifier-free guidance."""

from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from actors.policy.families.family import Conditioning, ConfigOf, Family, check_fixed_shift
from actors.policy.model_files import vae_scale
from actors.policy.settings import PolicySettings


class SD3(Family):
    """Drives a `StableDiffusion3Pipeline`; guidance above 1 is classifier-free, by default with an empty negative
    prompt.
    """

    pipeline_class = StableDiffusion3Pipeline

    def shape_of_latents(self, vae: dict[str, Any]) -> tuple[int, ...]:
        scale = vae_scale(vae)
        return (self.transformer.config.in_channels, self.settings.height // scale, self.settings.width // scale)

    def sigmas(self, num_steps: int) -> Tensor:
        scheduler = self.pipe.scheduler
        check_fixed_shift(scheduler, "SD3")
        scheduler.set_timesteps(num_steps)
        return scheduler.sigmas.clone()

    def encode_texts(self, texts: list[str]) -> Conditioning:
        prompt_PLD, _, pooled_PD, _ = self.pipe.encode_prompt(
            texts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.max_sequence_length,
        )
        return {"prompt": prompt_PLD, "pooled": pooled_PD}

    @classmethod
    def text_shapes(cls, settings: PolicySettings, config_of: ConfigOf) -> dict[str, tuple[int, ...]]:
        model, clip = config_of("transformer"), config_of("text_encoder")
        tokens = clip["max_position_embeddings"] + settings.max_sequence_length
        return {"prompt": (1, tokens, model["joint_attention_dim"]), "pooled": (1, model["pooled_projection_dim"])}

    def forward(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        return self.transformer(
            hidden_states=x_NZ.to(self.dtype),
            timestep=sigma_N * self.pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=conditioning["prompt"],
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def decode(self, latent_NZ: Tensor) -> Tensor:
        config = self.pipe.vae.config
        return self.pixels(latent_NZ.float() / config.scaling_factor + config.shift_factor)
