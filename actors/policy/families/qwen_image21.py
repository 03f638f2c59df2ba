"""Qwen-Image 2.1: text of Qwen3-VL, one block-causal stream of text and unpacked latents, images with opacity."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImage21Pipeline
from torch import Tensor
from transformers import ProcessorMixin

from actors.policy.families.block_causal import BlockCausalAttention, block_causal_forward
from actors.policy.families.family import Conditioning, ConfigOf
from actors.policy.families.packed import PackedFamily
from actors.policy.families.qwen_image import QwenImage
from actors.policy.model_files import vae_scale
from actors.policy.settings import PolicySettings
from services.base.errors import UserError


class TextProcessor(ProcessorMixin):
    """The text half of the pipeline's `Qwen3VLProcessor`, which needs torchvision for its images and videos."""

    def __init__(self, tokenizer: Any = None, chat_template: Any = None, **_: Any) -> None:
        super().__init__(tokenizer, chat_template=chat_template)

    def apply_chat_template(self, conversation: Any, **how: Any) -> Any:
        """One list of tokens, in a list, as the whole processor returns it for one conversation."""
        return super().apply_chat_template([conversation], **how)


class _NoProcessor:
    """Answers what the pipeline's constructor asks, where no text is encoded."""

    @property
    def tokenizer(self) -> "_NoProcessor":
        return self

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[]]

    def encode(self, _: str) -> list[int]:
        return [0]


class TextToImagePipeline(QwenImage21Pipeline):
    """A `QwenImage21Pipeline` that may lack its processor, as a learner's does."""

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        processor: Any,
        transformer: Any,
        sample_sigmas: list[float] | None = None,
    ) -> None:
        super().__init__(scheduler, vae, text_encoder, processor or _NoProcessor(), transformer, sample_sigmas)


class QwenImage21(QwenImage):
    """Drives a `QwenImage21Pipeline` for text to image, by a forward of fixed layout (`block_causal_forward`).

    Text is padded to `max_sequence_length` and masked. A longer prompt loses its end. An image is that of a call with
    its prompt alone: in a call with several prompts, the pipeline places each image behind the longest of them. The
    pipeline keeps the keys and values of the text from its first step. They do not depend on the step, so computing
    them again gives the same image. Transparent pixels are shown on white.
    """

    pipeline_class = TextToImagePipeline
    combined = PackedFamily.combined
    """The guided velocity is not rescaled."""

    def __init__(self, settings: PolicySettings, pipe: Any, vae: dict[str, Any]) -> None:
        super().__init__(settings, pipe, vae)
        self.transformer.set_attn_processor(BlockCausalAttention())
        # An attribute of the model's instance, so that what wraps a call of the model (FSDP2) still sees it.
        self.transformer.forward = partial(block_causal_forward, self.transformer)

    @classmethod
    def load_pipeline(cls, folder: Path | str, **given: Any) -> Any:
        if "processor" not in given:
            given["processor"] = TextProcessor.from_pretrained(folder, subfolder="processor")
        return super().load_pipeline(folder, **given)

    def shape_of_latents(self, vae: dict[str, Any]) -> tuple[int, ...]:
        scale = vae_scale(vae)
        self.token_grid = (self.settings.height // scale, self.settings.width // scale)
        return (self.token_grid[0] * self.token_grid[1], self.transformer.config.in_channels)

    def sigmas(self, num_steps: int) -> Tensor:
        """The schedule of the pipeline.

        Raises:
            UserError: the model has noise levels of its own, as a distilled one does, and another number of them.
        """
        levels = self.pipe.config.sample_sigmas
        if levels is None:
            return super().sigmas(num_steps)
        if num_steps != len(levels):
            raise UserError(
                f"policy.num_steps: this model samples in {len(levels)} steps of its own, not {num_steps}; "
                f"set policy.num_steps={len(levels)} and eval.num_steps={len(levels)}"
            )
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(sigmas=levels, mu=self.mu(num_steps))
        return scheduler.sigmas.clone()

    def encode_texts(self, texts: list[str]) -> Conditioning:
        """Each text alone, so that no padding is needed before it."""
        length = self.settings.max_sequence_length
        return self.padded([self.pipe.encode_prompt(text, device=self.device)[0][0, :length] for text in texts])

    @classmethod
    def text_shapes(cls, settings: PolicySettings, config_of: ConfigOf) -> dict[str, tuple[int, ...]]:
        tokens = settings.max_sequence_length
        return {"prompt": (1, tokens, config_of("transformer")["context_in_dim"]), "mask": (1, tokens)}

    def forward(self, x_NZ: Tensor, sigma_N: Tensor, conditioning: Conditioning) -> Tensor:
        return self.transformer(
            x_NZ.to(self.dtype), sigma_N, conditioning["prompt"], conditioning["mask"], self.token_grid
        ).float()

    def unpack(self, latent_NLD: Tensor) -> Tensor:
        """Tokens (N, L, C) to latent pixels (N, C, h, w)."""
        return latent_NLD.mT.unflatten(2, self.token_grid)

    @torch.no_grad()
    def decode(self, latent_NZ: Tensor) -> Tensor:
        colours_N3HW, opacity_N1HW = super().decode(latent_NZ).split([3, 1], 1)
        opacity_N1HW = (opacity_N1HW / 2 + 0.5).clamp(0, 1)
        return colours_N3HW.clamp(-1, 1) * opacity_N1HW + (1 - opacity_N1HW)
