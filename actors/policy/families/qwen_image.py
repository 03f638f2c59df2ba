"""Qwen-Image: text of a vision-language model, packed latents, true classifier-free guidance with a norm rescale."""

import torch
from diffusers import QwenImagePipeline
from torch import Tensor
from torch.nn.functional import pad

from actors.policy.families.family import Conditioning, ConfigOf
from actors.policy.families.packed import PackedFamily
from actors.policy.settings import PolicySettings


class QwenImage(PackedFamily):
    """Drives a `QwenImagePipeline`. The guided velocity is rescaled to the norm of the conditional one, token by token.

    Text is padded to `max_sequence_length` and masked, so that every forward has one shape.
    """

    pipeline_class = QwenImagePipeline
    default_negative_prompt = " "
    """The pipeline recommends this for guidance without a negative prompt."""

    def encode_texts(self, texts: list[str]) -> Conditioning:
        length = self.settings.max_sequence_length
        prompt_PLD, mask_PL = self.pipe.encode_prompt(texts, self.device, max_sequence_length=length)
        if mask_PL is None:
            mask_PL = torch.ones(prompt_PLD.shape[:2], device=self.device)
        missing = length - prompt_PLD.shape[1]
        return {"prompt": pad(prompt_PLD, (0, 0, 0, missing)), "mask": pad(mask_PL.to(self.dtype), (0, missing))}

    @classmethod
    def text_shapes(cls, settings: PolicySettings, config_of: ConfigOf) -> dict[str, tuple[int, ...]]:
        tokens = settings.max_sequence_length
        return {"prompt": (1, tokens, config_of("transformer")["joint_attention_dim"]), "mask": (1, tokens)}

    def combined(self, without_NZ: Tensor, with_NZ: Tensor) -> Tensor:
        guided_NZ = super().combined(without_NZ, with_NZ)
        return guided_NZ * (with_NZ.norm(dim=-1, keepdim=True) / guided_NZ.norm(dim=-1, keepdim=True))

    def forward(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        return self.transformer(
            hidden_states=x_NZ.to(self.dtype),
            timestep=sigma_N,
            encoder_hidden_states=conditioning["prompt"],
            encoder_hidden_states_mask=conditioning["mask"],
            img_shapes=[[(1, *self.token_grid)]] * len(x_NZ),
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def decode(self, latent_NZ: Tensor) -> Tensor:
        config = self.pipe.vae.config
        mean_C111, std_C111 = (
            torch.tensor(values, device=self.device).view(-1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        latent_NC1HW = self.unpack(latent_NZ.float()).unsqueeze(2) * std_C111 + mean_C111
        return self.pixels(latent_NC1HW)[:, :, 0]
