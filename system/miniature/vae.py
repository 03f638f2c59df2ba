"""The autoencoder of the shapes: 64x64 RGB to 8x8 latents with sixteen channels, and back."""

from __future__ import annotations

import time

import numpy as np
import torch
from diffusers import AutoencoderKL

from system.miniature.data import clutter, draw_scenes, render_scenes, to_images, to_tensor
from system.miniature.optim import Optimizer

TRAIN_IMAGES = 20_000
CLUTTER_SHARE = 0.1
BATCH = 16
LEARNING_RATE = 4e-3
KL_WEIGHT = 1e-6
LEVELLING = 0.7
"""0 leaves the channels as they are, 1 gives every direction the same variance."""


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder; eight channels at full resolution keep decoding fast on a CPU."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train_vae(seed: int, steps: int) -> AutoencoderKL:
    """Train on renderings of train scenes off the grid and on clutter, then set scale and shift to unit normal latents.

    Loss: mean absolute and squared pixel error, and a faint KL term.
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
    return level_latents(vae, images_NHWC[: len(rendered)][:4000])


@torch.no_grad()
def level_latents(vae: AutoencoderKL, images_NHWC: np.ndarray) -> AutoencoderKL:
    """Mix the latent channels so that none drowns in a flow's noise, then set scale and shift to unit normal latents.

    Trained freely, three directions of the 16 (colour) hold 85% of the variance and those that draw the shapes have a
    tenth of their standard deviation, so that a flow learns colours long before shapes. Here z' = M z with M symmetric
    and the eigenvalues λ of the channels' covariance become λ^(1 − LEVELLING). M is folded into the encoder's last and
    the decoder's first convolution: images are decoded as before. The posterior's variance stays in the old channels;
    only its mean is used.
    """
    latents_NCHW = raw_latents(vae, images_NHWC)
    values, vectors = torch.linalg.eigh(torch.cov(latents_NCHW.double().transpose(0, 1).flatten(1)))
    mix = (vectors * values ** (-LEVELLING / 2)) @ vectors.T
    last, first, channels = vae.encoder.conv_out, vae.decoder.conv_in, len(values)
    mean_weight = torch.einsum("ij,jkhw->ikhw", mix, last.weight[:channels].double())
    last.weight[:channels] = mean_weight.float()
    last.bias[:channels] = (mix @ last.bias[:channels].double()).float()
    first.weight.copy_(torch.einsum("oihw,ij->ojhw", first.weight.double(), mix.inverse()).float())
    latents_NCHW = raw_latents(vae, images_NHWC)
    vae.register_to_config(scaling_factor=float(1 / latents_NCHW.std()), shift_factor=float(latents_NCHW.mean()))
    return vae


@torch.no_grad()
def raw_latents(vae: AutoencoderKL, images_NHWC: np.ndarray, batch: int = 100) -> torch.Tensor:
    """Posterior means float32 (N, 16, 8, 8) before scale and shift."""
    parts = [images_NHWC[i : i + batch] for i in range(0, len(images_NHWC), batch)]
    return torch.cat([vae.encode(to_tensor(part)).latent_dist.mean for part in parts])


def encode(vae: AutoencoderKL, images_NHWC: np.ndarray) -> torch.Tensor:
    """Scaled and shifted latents float32 (N, 16, 8, 8) of uint8 images (N, 64, 64, 3)."""
    return (raw_latents(vae, images_NHWC) - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents_NCHW: torch.Tensor, batch: int = 100) -> np.ndarray:
    """uint8 images (N, 64, 64, 3) of scaled and shifted latents (N, 16, 8, 8)."""
    raw_NCHW = latents_NCHW / vae.config.scaling_factor + vae.config.shift_factor
    return np.concatenate([to_images(vae.decode(part).sample) for part in raw_NCHW.split(batch)])


def psnr_db(images_NHWC: np.ndarray, others_NHWC: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two stacks of uint8 images."""
    error = (images_NHWC.astype(np.float32) - others_NHWC.astype(np.float32)) ** 2
    return float(10 * np.log10(255**2 / error.mean()))
