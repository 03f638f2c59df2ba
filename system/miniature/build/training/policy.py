"""The policy of the shapes: a tiny Stable Diffusion 3 pipeline, pretrained by flow matching.

Rectified flow as in arXiv 2403.03206: x_sigma = (1 - sigma) x0 + sigma noise, and the network predicts noise - x0.
Sigma is uniform before the scheduler's shift of 3, so training uses the same noise levels as sampling. In a second
round of training, a share of the captions belongs to other images, as with captions from the web, so that the policy
learns to trust captions too little. One change corrects this fault for all captions: guidance has this effect, and
reinforcement learning can learn it.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from system.miniature.build.training.data import draw_scenes, render_scenes
from system.miniature.build.training.optimizer import Optimizer
from system.miniature.build.training.vae import LATENT_SHAPE, decode, encode, load_vae
from system.miniature.world import Scene, caption

TRAIN_IMAGES = 20_000
BATCH = 64
WARMUP_STEPS = 100
EMA_DECAY = 0.995
CAPTION_DROPOUT = 0.1
SHIFT = 3.0
T5_TOKENS = 1
"""The pipeline pads a zero block of this many tokens for the absent third text encoder."""
TEXT_DIM = 64
TEXT_LAYERS = 2
WIDTH = 96
LAYERS = 5


@dataclass(frozen=True)
class Round:
    """One round of the policy's training."""

    steps: int
    lr: float
    mislabelled: float
    """The share of the captions that belong to other images."""
    every: int
    """The number of steps between two evaluations of the policy."""


PRETRAINING = Round(steps=3000, lr=5e-3, mislabelled=0.0, every=250)
MISLABELLING = Round(steps=800, lr=2e-3, mislabelled=0.2, every=200)


class Denoiser(nn.Module):
    """The transformer and both text encoders, which are trained together."""

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        text_encoder: CLIPTextModelWithProjection,
        text_encoder_2: CLIPTextModelWithProjection,
    ) -> None:
        super().__init__()
        self.transformer, self.text_encoder, self.text_encoder_2 = transformer, text_encoder, text_encoder_2

    @classmethod
    def new(cls, tokenizer: CLIPTokenizer) -> Denoiser:
        """An untrained denoiser for captions of `tokenizer` and the latents of `vae.new_vae`."""
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_DIM,
            intermediate_size=4 * TEXT_DIM,
            projection_dim=TEXT_DIM,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        transformer = SD3Transformer2DModel(
            sample_size=LATENT_SHAPE[1],
            patch_size=2,
            in_channels=LATENT_SHAPE[0],
            out_channels=LATENT_SHAPE[0],
            num_layers=LAYERS,
            attention_head_dim=32,
            num_attention_heads=WIDTH // 32,
            joint_attention_dim=2 * TEXT_DIM,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * TEXT_DIM,
            pos_embed_max_size=LATENT_SHAPE[1] // 2,
            qk_norm="rms_norm",
        )
        return cls(transformer, CLIPTextModelWithProjection(text), CLIPTextModelWithProjection(text))

    @classmethod
    def load(cls, folder: Path) -> Denoiser:
        """Load the denoiser from a pipeline folder."""
        return cls(
            SD3Transformer2DModel.from_pretrained(folder / "transformer", use_safetensors=True),
            CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", use_safetensors=True),
            CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", use_safetensors=True),
        ).eval()

    def encode_text(self, ids_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode token ids (B, 16) to embeddings (B, 17, 128) and pooled (B, 128), as the pipeline's encode_prompt."""
        outputs = [e(ids_BL, output_hidden_states=True) for e in (self.text_encoder, self.text_encoder_2)]
        clip_BLD = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        t5_BLD = clip_BLD.new_zeros(len(ids_BL), T5_TOKENS, clip_BLD.shape[-1])
        return torch.cat([clip_BLD, t5_BLD], dim=1), torch.cat([output.text_embeds for output in outputs], dim=-1)

    def forward(
        self, x_BCHW: torch.Tensor, sigma_B: torch.Tensor, text: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """The velocity (B, C, H, W) at noise level sigma in [0, 1]."""
        text_BLD, pooled_BD = text
        return self.transformer(
            hidden_states=x_BCHW,
            encoder_hidden_states=text_BLD,
            pooled_projections=pooled_BD,
            timestep=sigma_B * 1000,
            return_dict=False,
        )[0]


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Token ids (N, 16), padded as the pipeline pads them."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


def captions_of(scenes: Sequence[Scene], mislabelled: float, rng: np.random.Generator) -> list[str]:
    """The captions of scenes. A share `mislabelled` of them comes from other scenes of the list, at random."""
    captions = [caption(scene) for scene in scenes]
    others = rng.permutation(len(scenes))
    return [captions[j] if rng.random() < mislabelled else captions[i] for i, j in enumerate(others)]


def train_policy(
    model: Denoiser,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    rng: np.random.Generator,
    round_: Round,
    look: Callable[[int, Denoiser], None],
) -> None:
    """Train for one round. Calls `look(step, averaged weights)` every `round_.every` steps, and so at the end.

    The learning rate falls to 0 from two fifths of the steps on.
    """
    scenes = draw_scenes(TRAIN_IMAGES, rng, relation_every=2)
    latents_NCHW = encode(vae, render_scenes(scenes, rng))
    ids_NL = token_ids(tokenizer, captions_of(scenes, round_.mislabelled, rng))
    empty_L = token_ids(tokenizer, [""])[0]
    averaged = copy.deepcopy(model).requires_grad_(False).eval()
    optimizer = Optimizer(model.train(), round_.lr, round_.steps, fall=0.6, warmup_steps=WARMUP_STEPS)
    start, losses = time.monotonic(), []
    print(f"policy {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    for step in range(1, round_.steps + 1):
        rows = torch.from_numpy(rng.integers(TRAIN_IMAGES, size=BATCH))
        x0_BCHW, ids_BL = latents_NCHW[rows], ids_NL[rows]
        ids_BL[torch.rand(BATCH) < CAPTION_DROPOUT] = empty_L
        noise_BCHW, u_B = torch.randn_like(x0_BCHW), torch.rand(BATCH)
        sigma_B = SHIFT * u_B / (1 + (SHIFT - 1) * u_B)
        sigma_B111 = sigma_B[:, None, None, None]
        x_BCHW = (1 - sigma_B111) * x0_BCHW + sigma_B111 * noise_BCHW
        velocity_BCHW = model(x_BCHW, sigma_B, model.encode_text(ids_BL))
        loss = (velocity_BCHW - (noise_BCHW - x0_BCHW)).square().mean()
        optimizer.step(loss)
        decay = min(EMA_DECAY, step / (step + 10))
        for mean, new in zip(averaged.parameters(), model.parameters(), strict=True):
            mean.lerp_(new.detach(), 1 - decay)
        losses.append(loss.item())
        if step % 100 == 0:
            seconds = time.monotonic() - start
            print(f"policy step {step}/{round_.steps} loss {np.mean(losses[-100:]):.4f} {seconds:.0f} s", flush=True)
        if step % round_.every == 0:
            look(step, averaged)


def save_policy(model: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a Stable Diffusion 3 pipeline folder without the third text encoder."""
    StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder, safe_serialization=True)


def load_policy(folder: Path) -> tuple[AutoencoderKL, Denoiser, CLIPTokenizer]:
    """Load the autoencoder, denoiser and tokenizer of a pipeline folder."""
    return load_vae(folder / "vae"), Denoiser.load(folder), CLIPTokenizer.from_pretrained(folder / "tokenizer")


@torch.no_grad()
def sample(
    model: Denoiser,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    prompts: Sequence[str],
    seed: int,
    steps: int = 10,
    guidance: float = 1.0,
    batch: int = 64,
) -> np.ndarray:
    """Sample uint8 images (N, 64, 64, 3) by Euler steps with the stock pipeline's arithmetic. Guidance 1 means none."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    x_NCHW = torch.randn(len(prompts), *LATENT_SHAPE, generator=generator)
    empty_1L = token_ids(tokenizer, [""])
    images = []
    for ids_BL, x_BCHW in zip(token_ids(tokenizer, prompts).split(batch), x_NCHW.split(batch), strict=True):
        text, empty = model.encode_text(ids_BL), model.encode_text(empty_1L.expand(len(ids_BL), -1))
        for sigma, after in itertools.pairwise(scheduler.sigmas):
            sigma_B = sigma.expand(len(x_BCHW))
            velocity_BCHW = model(x_BCHW, sigma_B, text)
            if guidance != 1.0:
                without_BCHW = model(x_BCHW, sigma_B, empty)
                velocity_BCHW = without_BCHW + guidance * (velocity_BCHW - without_BCHW)
            x_BCHW = x_BCHW + (after - sigma) * velocity_BCHW
        images.append(decode(vae, x_BCHW))
    return np.concatenate(images)
