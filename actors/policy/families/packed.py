"""The common part of FLUX and Qwen-Image: latents are packed 2×2 into tokens, whose number shifts the schedule."""

from typing import Any

import numpy as np
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from actors.policy.families.family import Family
from actors.policy.model_files import vae_scale


class PackedFamily(Family):
    """Latents are (L, 4C): L tokens of 2×2 latent pixels."""

    def shape_of_latents(self, vae: dict[str, Any]) -> tuple[int, ...]:
        scale = 2 * vae_scale(vae)
        self.token_grid = (self.settings.height // scale, self.settings.width // scale)
        return (self.token_grid[0] * self.token_grid[1], self.transformer.config.in_channels)

    def mu(self, num_steps: int) -> float:
        """The shift of the schedule, which depends on the number of tokens."""
        config = self.pipe.scheduler.config
        return calculate_shift(
            self.latent_shape[0],
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )

    def sigmas(self, num_steps: int) -> Tensor:
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=self.mu(num_steps))
        return scheduler.sigmas.clone()

    def unpack(self, latent_NLD: Tensor) -> Tensor:
        """Tokens (N, L, 4C) to latent pixels (N, C, h, w)."""
        rows, columns = self.token_grid
        tokens = latent_NLD.unflatten(1, (rows, columns)).unflatten(3, (-1, 2, 2))
        return tokens.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
