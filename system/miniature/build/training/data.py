"""Rendered training sets, deterministic from a seed."""

from __future__ import annotations

import numpy as np
import torch

from system.miniature.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Placed, Scene, Thing, paint, render, split


def draw_scenes(count: int, rng: np.random.Generator, held_out: bool = False, relation_every: int = 4) -> list[Scene]:
    """Draw `count` random train or held-out scenes. One in `relation_every` is a relation; the others are single."""
    single, relation = (split(category)[int(held_out)] for category in ("single", "relation"))
    pools = [relation if i % relation_every == relation_every - 1 else single for i in range(count)]
    return [pool[rng.integers(len(pool))] for pool in pools]


def render_scenes(scenes: list[Scene], rng: np.random.Generator, anywhere: bool = False) -> np.ndarray:
    """Draw one image of each scene, uint8 (N, 64, 64, 3), with objects on the grid or anywhere."""
    return np.stack([render(scene, rng, anywhere) for scene in scenes])


def clutter(rng: np.random.Generator) -> np.ndarray:
    """Draw an image, uint8 (64, 64, 3), of one to four objects that may overlap, leave the frame and be transparent."""
    things = [
        Placed(
            Thing("any", str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))),
            float(rng.uniform(0, 64)),
            float(rng.uniform(0, 64)),
            float(rng.uniform(SIZES["small"][0], SIZES["large"][1])),
        )
        for _ in range(rng.integers(1, 5))
    ]
    ground = (BACKGROUNDS | COLOURS)[str(rng.choice([*BACKGROUNDS, *COLOURS]))]
    return paint(things, ground, opacity=float(rng.choice([1.0, 1.0, rng.uniform(0.3, 1)])))


def to_tensor(images_NHWC: np.ndarray) -> torch.Tensor:
    """Convert uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x_NCHW: torch.Tensor) -> np.ndarray:
    """Convert float (N, 3, H, W) in [-1, 1] to uint8 (N, H, W, 3), rounded as in the pipelines."""
    x_NHWC = (x_NCHW / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return (x_NHWC.float().numpy() * 255).round().astype(np.uint8)
