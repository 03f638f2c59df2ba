"""Ways to spoil an image, for the worse images of preference pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from system.miniature.build.training.data import clutter
from system.miniature.world import BACKGROUNDS, COLOURS, IMAGE_PX, SHAPES, Placed, Scene, Thing, paint, place


def spoil(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene, spoiled in one of the ways below, chosen at random. Returns an image, uint8 (64, 64, 3)."""
    placed, ground = place(scene, rng, anywhere=True), BACKGROUNDS[scene.background]
    way = WAYS[rng.integers(len(WAYS))]
    return way(scene, placed, ground, rng)


def _faded(scene, placed, ground, rng):
    return paint(placed, ground, opacity=float(rng.uniform(0.1, 0.6)))


def _noisy(scene, placed, ground, rng):
    noise_HWC = rng.normal(0, rng.uniform(20, 90), (IMAGE_PX, IMAGE_PX, 3))
    return np.clip(paint(placed, ground) + noise_HWC, 0, 255).astype(np.uint8)


def _blurred(scene, placed, ground, rng):
    image_HWC: np.ndarray = paint(placed, ground).astype(np.float32)
    for _ in range(rng.integers(6, 30)):
        padded = np.pad(image_HWC, ((1, 1), (1, 1), (0, 0)), mode="edge")
        image_HWC = (padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]) / 4
    return image_HWC.astype(np.uint8)


def _missing(scene, placed, ground, rng):
    keep = int(rng.integers(len(placed)))
    return paint(placed[keep : keep + 1] if len(placed) > 1 else [], ground)


def _extra(scene, placed, ground, rng):
    return paint([*placed, *(_any(rng) for _ in range(rng.integers(1, 4)))], ground)


def _double(scene, placed, ground, rng):
    item = placed[rng.integers(len(placed))]
    x, y = (float(v) for v in rng.uniform(8, 56, 2))
    return paint([*placed, replace(item, x_px=x, y_px=y)], ground)


def _hybrid(scene, placed, ground, rng):
    item = placed[rng.integers(len(placed))]
    other = replace(item, thing=replace(item.thing, shape=str(rng.choice(SHAPES))))
    image, changed = paint(placed, ground), paint([*placed, other], ground)
    return changed if rng.random() < 0.5 else (image // 2 + changed // 2)


def _tiled(scene, placed, ground, rng):
    step = int(rng.integers(2, 4))
    return np.tile(paint(placed, ground)[::step, ::step], (step + 1, step + 1, 1))[:IMAGE_PX, :IMAGE_PX]


def _odd(scene, placed, ground, rng):
    image = paint(placed, ground)
    kind = rng.integers(5)
    if kind == 0:
        return np.ascontiguousarray(image[..., rng.permutation([1, 2, 0])])
    if kind == 1:
        return 255 - image
    if kind == 2:
        return rng.integers(0, 256, image.shape, dtype=np.uint8)
    if kind == 3:
        cells = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return cells.repeat(8, 0).repeat(8, 1)
    return clutter(rng)


def _stretched(scene, placed, ground, rng):
    grown = [replace(item, radius_px=item.radius_px * float(rng.choice([0.5, 1.7, 2.2]))) for item in placed]
    return paint(grown, ground)


def _any(rng: np.random.Generator) -> Placed:
    x, y, radius = rng.uniform(4, 60), rng.uniform(4, 60), rng.uniform(4, 13)
    return Placed(Thing("any", str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))), x, y, radius)


WAYS = (_faded, _noisy, _blurred, _missing, _extra, _double, _hybrid, _tiled, _odd, _stretched)
