"""The autoencoder of the shapes: 64x64 RGB to 16x16 latents with four channels, and back.

Few channels and a small reduction keep the latents similar to pictures. With sixteen channels of 8x8, three directions
(colour) had 85% of the variance, which hid the directions of the shapes: the flow learned shapes four times slower.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from system.miniature.build.training.data import clutter, draw_scenes, render_scenes, to_images, to_tensor
from system.miniature.build.training.optimizer import Optimizer

TRAIN_IMAGES = 12_000
CLUTTER_SHARE = 0.1
BATCH = 16
LEARNING_RATE = 4e-3
KL_WEIGHT = 1e-6
LATENT_SHAPE = (4, 16, 16)
"""The channels, rows and columns of a latent."""


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder. It has only eight channels at full resolution, so that decoding is fast on a CPU."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        latent_channels=LATENT_SHAPE[0],
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def load_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder that a stage has saved."""
    return AutoencoderKL.from_pretrained(folder, use_safetensors=True).eval()


def train_vae(seed: int, steps: int) -> AutoencoderKL:
    """Train on clutter and on train scenes off the grid. Then set scale and shift so that latents are unit normal.

    The loss is the mean absolute and squared pixel error, and a KL term with a small weight.
    """
    rng = np.random.default_rng([seed, 1])
    torch.manual_seed(seed)
    cluttered = int(CLUTTER_SHARE * TRAIN_IMAGES)
    rendered = render_scenes(draw_scenes(TRAIN_IMAGES - cluttered, rng), rng, anywhere=True)
    images_NHWC = np.concatenate([rendered, np.stack([clutter(rng) for _ in range(cluttered)])])
    vae = new_vae()
    optimizer = Optimizer(vae, LEARNING_RATE, steps, fall=0.6)
    start, errors = time.monotonic(), []
    for step in range(1, steps + 1):
        x_BCHW = to_tensor(images_NHWC[rng.integers(TRAIN_IMAGES, size=BATCH)])
        posterior = vae.encode(x_BCHW).latent_dist
        error_BCHW = vae.decode(posterior.sample()).sample - x_BCHW
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        square = error_BCHW.square().mean()
        optimizer.step(0.5 * error_BCHW.abs().mean() + 5 * square + KL_WEIGHT * kl)
        errors.append(square.item())
        if step % 100 == 0:
            psnr, seconds = 10 * np.log10(4 / np.mean(errors[-100:])), time.monotonic() - start
            print(f"vae step {step}/{steps} PSNR {psnr:.1f} dB {seconds:.0f} s", flush=True)
    vae.eval()
    latents_NCHW = raw_latents(vae, rendered[:4000])
    vae.register_to_config(scaling_factor=float(1 / latents_NCHW.std()), shift_factor=float(latents_NCHW.mean()))
    return vae


@torch.no_grad()
def raw_latents(vae: AutoencoderKL, images_NHWC: np.ndarray, batch: int = 100) -> torch.Tensor:
    """Encode images to posterior means, float32 (N, 4, 16, 16), before scale and shift."""
    parts = [images_NHWC[i : i + batch] for i in range(0, len(images_NHWC), batch)]
    return torch.cat([vae.encode(to_tensor(part)).latent_dist.mean for part in parts])


def encode(vae: AutoencoderKL, images_NHWC: np.ndarray) -> torch.Tensor:
    """Encode uint8 images (N, 64, 64, 3) to scaled and shifted latents, float32 (N, 4, 16, 16)."""
    return (raw_latents(vae, images_NHWC) - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents_NCHW: torch.Tensor, batch: int = 100) -> np.ndarray:
    """Decode scaled and shifted latents (N, 4, 16, 16) to uint8 images (N, 64, 64, 3)."""
    raw_NCHW = latents_NCHW / vae.config.scaling_factor + vae.config.shift_factor
    return np.concatenate([to_images(vae.decode(part).sample) for part in raw_NCHW.split(batch)])


def psnr_db(images_NHWC: np.ndarray, others_NHWC: np.ndarray) -> float:
    """The peak signal-to-noise ratio, in dB, between two stacks of uint8 images."""
    error = (images_NHWC.astype(np.float32) - others_NHWC.astype(np.float32)) ** 2
    return float(10 * np.log10(255**2 / error.mean()))
