"""Z-Image: text of a language model in one stream with (C, H, W) latents, classifier-free guidance.

Shape legend: N rows, L caption tokens, S image tokens of 2×2 latent pixels, D embedding.
"""

from functools import partial
from typing import Any

import torch
from diffusers import ZImagePipeline
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch import Tensor
from torch.nn.functional import pad

from actors.policy.families.family import Conditioning, ConfigOf, Family, check_fixed_shift
from actors.policy.model_files import vae_scale
from actors.policy.settings import PolicySettings

PATCH = 2
"""Latent pixels along the side of a token."""


class ZImage(Family):
    """Drives a `ZImagePipeline`. Guidance is the pipeline's `guidance_scale` w: v + w · (v − v₋); 0 switches it off. So
    w = 4 is the 5 of other families, which count from the negative prompt.

    The pipeline's transformer takes lists, and pads captions to the longest one of a call. So the last bits of a row
    would depend on its neighbours, and each call would have another shape. Here captions are padded to
    `max_sequence_length` and masked (`forward_padded`).
    """

    pipeline_class = ZImagePipeline

    def __init__(self, settings: PolicySettings, pipe: Any, vae: dict[str, Any]) -> None:
        super().__init__(settings, pipe, vae)
        # An attribute of the model's instance, so that what wraps a call of the model (FSDP2) still sees it.
        self.transformer.forward = partial(forward_padded, self.transformer)

    @classmethod
    def guides(cls, settings: PolicySettings) -> bool:
        return settings.guidance > 0

    def shape_of_latents(self, vae: dict[str, Any]) -> tuple[int, ...]:
        scale = vae_scale(vae)
        return (self.transformer.config.in_channels, self.settings.height // scale, self.settings.width // scale)

    def sigmas(self, num_steps: int) -> Tensor:
        scheduler = self.pipe.scheduler
        check_fixed_shift(scheduler, "Z-Image")
        scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(num_steps))
        return scheduler.sigmas.clone()

    def encode_texts(self, texts: list[str]) -> Conditioning:
        length = self.settings.max_sequence_length
        # The pipeline changes the list that it is given.
        captions, _ = self.pipe.encode_prompt(list(texts), self.device, False, max_sequence_length=length)
        return self.padded(captions)

    @classmethod
    def text_shapes(cls, settings: PolicySettings, config_of: ConfigOf) -> dict[str, tuple[int, ...]]:
        tokens = settings.max_sequence_length
        return {"prompt": (1, tokens, config_of("transformer")["cap_feat_dim"]), "mask": (1, tokens)}

    def combined(self, without_NZ: Tensor, with_NZ: Tensor) -> Tensor:
        return with_NZ + self.settings.guidance * (with_NZ - without_NZ)

    def forward(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        # The model counts time from noise to image, and gives the velocity of that direction.
        time_N = (1000 - sigma_N * 1000) / 1000
        return -self.transformer(x_NZ.to(self.dtype), time_N, conditioning["prompt"], conditioning["mask"]).float()

    @torch.no_grad()
    def decode(self, latent_NZ: Tensor) -> Tensor:
        config = self.pipe.vae.config
        return self.pixels(latent_NZ.float() / config.scaling_factor + config.shift_factor)


def forward_padded(self: Any, x_NCHW: Tensor, time_N: Tensor, caption_NLD: Tensor, mask_NL: Tensor) -> Tensor:
    """The forward of `ZImageTransformer2DModel` (`self`) for captions of different lengths that are padded to one.

    As in the model's own, a caption and an image are filled up to a multiple of 32 tokens with learned tokens, which
    are attended to, and an image's positions begin after its caption. What is beyond that of a caption is masked. The
    own forward does the same with each row alone.

    Args:
        x_NCHW: latents.
        time_N: 0 is noise and 1 is image.
        caption_NLD: text embeddings.
        mask_NL: 1 for tokens of a caption, which come first, and 0 beyond.

    Returns:
        The velocity from noise to image, (N, C, H, W).
    """
    rows, columns = x_NCHW.shape[2] // PATCH, x_NCHW.shape[3] // PATCH
    key, device = f"{PATCH}-1", x_NCHW.device
    time_ND = self.t_embedder(time_N * self.t_scale).type_as(x_NCHW)

    def run(layers: Any, x_NLD: Tensor, *more: Any) -> Tensor:
        for layer in layers:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x_NLD = self._gradient_checkpointing_func(layer, x_NLD, *more)
            else:
                x_NLD = layer(x_NLD, *more)
        return x_NLD

    # Captions: their tokens, then learned ones up to a multiple of 32, then masked ones.
    beyond = -caption_NLD.shape[1] % SEQ_MULTI_OF
    caption_NLD, given_NL = pad(caption_NLD, (0, 0, 0, beyond)), pad(mask_NL, (0, beyond)).bool()
    filled_N = -(-given_NL.sum(1) // SEQ_MULTI_OF) * SEQ_MULTI_OF
    place_L = torch.arange(caption_NLD.shape[1], device=device)
    attended_NL = place_L < filled_N[:, None]
    caption_ids_L3 = pad(place_L[:, None] + 1, (0, 2))
    caption_freqs_NLF = self.rope_embedder(caption_ids_L3).expand(len(x_NCHW), -1, -1)
    caption_NLD = torch.where(given_NL[..., None], self.cap_embedder(caption_NLD), self.cap_pad_token)
    caption_NLD = run(self.context_refiner, caption_NLD, attended_NL, caption_freqs_NLF)

    # Images: their tokens, which begin after the caption's on the first axis of positions, then learned ones.
    tokens_NSD = x_NCHW.unflatten(3, (columns, PATCH)).unflatten(2, (rows, PATCH)).permute(0, 2, 4, 3, 5, 1)
    image_NSD = self.all_x_embedder[key](tokens_NSD.flatten(3).flatten(1, 2))
    more = -rows * columns % SEQ_MULTI_OF
    image_NSD = torch.cat([image_NSD, self.x_pad_token.expand(len(x_NCHW), more, -1)], dim=1)
    grid_S3 = pad(self.create_coordinate_grid((rows, columns), device=device).flatten(0, 1), (1, 0))
    starts_N13 = pad((filled_N + 1)[:, None, None], (0, 2))
    image_ids_NS3 = pad(grid_S3 + starts_N13, (0, 0, 0, more))
    image_freqs_NSF = self.rope_embedder(image_ids_NS3.flatten(0, 1)).unflatten(0, image_ids_NS3.shape[:2])
    image_NSD = run(self.noise_refiner, image_NSD, None, image_freqs_NSF, time_ND)

    # One stream of both.
    stream = torch.cat([image_NSD, caption_NLD], dim=1)
    mask = torch.cat([attended_NL.new_ones(image_NSD.shape[:2]), attended_NL], dim=1)
    freqs = torch.cat([image_freqs_NSF, caption_freqs_NLF], dim=1)
    stream = self.all_final_layer[key](run(self.layers, stream, mask, freqs, time_ND), c=time_ND)
    v_NS = stream[:, : rows * columns].unflatten(2, (PATCH, PATCH, -1)).unflatten(1, (rows, columns))
    return v_NS.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
