"""Stable Diffusion 3 and 3.5: three text encoders, 16-channel latents, classifier-free guidance."""

from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from actors.policy.family import Conditioning, Family, Parts


class SD3(Family):
    """Drives a `StableDiffusion3Pipeline`; conditioning holds the negative prompt's embeddings beside the prompt's."""

    pipeline_class = StableDiffusion3Pipeline

    def load(self, folder: Path | str, parts: Parts) -> None:
        wanted = {"transformer", "scheduler"}
        index = StableDiffusion3Pipeline.load_config(folder)
        absent = {
            name: None
            for name, entry in index.items()
            if isinstance(entry, list) and (entry[0] is None or (parts == "transformer" and name not in wanted))
        }
        self.pipe = StableDiffusion3Pipeline.from_pretrained(
            folder, dtype={"default": self.dtype, "vae": torch.float32}, use_safetensors=True, **absent
        ).to(self.device)
        self.transformer = self.pipe.transformer
        self.guided = self.settings.guidance > 1
        if parts == "all":
            self.pipe.vae.requires_grad_(False)
            scale = self.pipe.vae_scale_factor
            channels = self.transformer.config.in_channels
            self.latent_shape = (channels, self.settings.height // scale, self.settings.width // scale)

    @property
    def forwards_per_row(self) -> int:
        return 2 if self.guided else 1

    def sigmas(self) -> Tensor:
        scheduler = self.pipe.scheduler
        if scheduler.config.get("use_dynamic_shifting"):
            raise ValueError("SD3 with resolution-dependent shifting is not supported")
        scheduler.set_timesteps(self.settings.num_steps)
        return scheduler.sigmas.clone()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        prompt_PLD, negative_PLD, pooled_PD, negative_pooled_PD = self.pipe.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=self.guided,
            max_sequence_length=self.settings.max_sequence_length,
        )
        rows = {"prompt": prompt_PLD, "pooled": pooled_PD}
        if self.guided:
            rows |= {"negative": negative_PLD, "negative_pooled": negative_pooled_PD}
        return rows

    def velocity(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        prompt_NLD, pooled_ND = conditioning["prompt"], conditioning["pooled"]
        timestep_N = sigma_N * self.pipe.scheduler.config.num_train_timesteps
        x_NZ = x_NZ.to(self.dtype)
        if self.guided:
            prompt_NLD = torch.cat([conditioning["negative"], prompt_NLD])
            pooled_ND = torch.cat([conditioning["negative_pooled"], pooled_ND])
            x_NZ, timestep_N = torch.cat([x_NZ, x_NZ]), torch.cat([timestep_N, timestep_N])
        v_NZ = self.transformer(
            hidden_states=x_NZ,
            timestep=timestep_N,
            encoder_hidden_states=prompt_NLD,
            pooled_projections=pooled_ND,
            return_dict=False,
        )[0].float()
        if not self.guided:
            return v_NZ
        without_NZ, with_NZ = v_NZ.chunk(2)
        return without_NZ + self.settings.guidance * (with_NZ - without_NZ)

    @torch.no_grad()
    def decode(self, latent_NZ: Tensor) -> Tensor:
        vae = self.pipe.vae
        latent_NZ = latent_NZ.float() / vae.config.scaling_factor + vae.config.shift_factor
        pixels_NCHW = vae.decode(latent_NZ, return_dict=False)[0]
        pixels_NHWC = (pixels_NCHW / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (pixels_NHWC * 255).round().to(torch.uint8).cpu()
