"""The judge of the shapes: pixel rules that decide whether an image shows the scene of its caption.

Nothing is learned. Each pixel is assigned the nearest palette colour among those with a solid patch close by, so that
the blended edge of an object is not taken for a third colour. An object is measured by its area and centroid, and
compared with the four ideal shapes of the same area and centroid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from system.miniature.world import (
    AREAS,
    IMAGE_PX,
    PALETTE,
    RELATIONS,
    SHAPES,
    SIZE_LIMIT_PX,
    Scene,
    cover,
    parse,
)

BLUR_ALLOWANCE = {"cross": 0.06}
"""Added to the overlap when shapes are compared, because blurred corners reduce a cross's overlap the most."""
ATTRIBUTES = ("background", "colour", "shape", "size", "relation", "clean")


class Judge:
    """A scorer that knows the right answer: 1.0 if an image shows exactly the scene of its caption, else 0.0.

    colour_tolerance: the RGB distance up to which a pixel counts as a solid palette colour.
    min_overlap: the least intersection over union of an object with the ideal shape.
    max_stray_px: the most pixels of other colours, or of no palette colour, that an image may have.
    """

    def __init__(self, colour_tolerance: float = 75.0, min_overlap: float = 0.7, max_stray_px: int = 16) -> None:
        self.colour_tolerance = colour_tolerance
        self.min_overlap = min_overlap
        self.max_stray_px = max_stray_px

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Score uint8 images (N, 64, 64, 3) with N captions. Returns float64 (N,); NaN for a malformed caption."""
        verdicts = self.verdicts(images, prompts)
        return np.array([np.nan if v is None else float(all(v.values())) for v in verdicts], np.float64)

    def verdicts(self, images: np.ndarray, prompts: Sequence[str]) -> list[dict[str, bool] | None]:
        """For each image, whether each of `ATTRIBUTES` is right; None for a malformed caption.

        "colour" is right if the image shows all objects in their colours, "clean" if it shows nothing else. All
        attributes of a missing object are wrong. "relation" is right for single objects.
        """
        if images.dtype != np.uint8 or images.shape != (len(prompts), IMAGE_PX, IMAGE_PX, 3):
            raise ValueError(
                f"The judge needs uint8 images of shape ({len(prompts)}, 64, 64, 3), got {images.dtype} {images.shape}."
            )
        return [self._verdict(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _verdict(self, image_HWC: np.ndarray, prompt: str) -> dict[str, bool] | None:
        try:
            scene = parse(prompt)
        except ValueError:
            return None
        areas = self.areas(image_HWC)
        found = [measure_object(areas[thing.colour]) for thing in scene.things]
        sizes = ["small" if radius_px < SIZE_LIMIT_PX else "large" for _, radius_px, _, _ in found]
        asked = {scene.background, *(thing.colour for thing in scene.things)}
        stray_px = IMAGE_PX**2 - sum(int(areas[colour].sum()) for colour in asked)
        there = all(areas[thing.colour].sum() >= 40 for thing in scene.things)
        return {
            "background": max(areas, key=lambda colour: areas[colour].sum()) == scene.background,
            "colour": there,
            "shape": there
            and all(
                shape == thing.shape and overlap >= self.min_overlap
                for thing, (shape, _, overlap, _) in zip(scene.things, found, strict=True)
            ),
            "size": there and sizes == [thing.size for thing in scene.things],
            "relation": there and _holds(scene, [centre for *_, centre in found]),
            "clean": stray_px <= self.max_stray_px,
        }

    def areas(self, image_HWC: np.ndarray) -> dict[str, np.ndarray]:
        """The mask, bool (64, 64), of each palette colour. A pixel belongs to at most one mask."""
        palette_K3 = np.array(list(PALETTE.values()), np.float32)
        difference_KHWC = image_HWC.astype(np.float32) - palette_K3[:, None, None, :]
        distance_KHW = np.sqrt((difference_KHWC**2).sum(-1))
        nearest_HW = distance_KHW.argmin(0)
        label_K = np.arange(len(palette_K3))[:, None, None]
        solid_KHW = (nearest_HW == label_K) & (distance_KHW < self.colour_tolerance)
        near_KHW = _grow(_grow(_grow(_shrink(solid_KHW))))
        distance_KHW = np.where(near_KHW, distance_KHW, np.inf)
        owner_HW = np.where(near_KHW.any(0), distance_KHW.argmin(0), -1)
        return {colour: owner_HW == k for k, colour in enumerate(PALETTE)}


def _shift(mask_KHW: np.ndarray, fill: bool) -> list[np.ndarray]:
    """The mask and its four copies shifted by one pixel, with `fill` outside of the frame."""
    padded = np.pad(mask_KHW, ((0, 0), (1, 1), (1, 1)), constant_values=fill)
    return [mask_KHW, padded[:, 2:, 1:-1], padded[:, :-2, 1:-1], padded[:, 1:-1, 2:], padded[:, 1:-1, :-2]]


def _shrink(mask_KHW: np.ndarray) -> np.ndarray:
    return np.logical_and.reduce(_shift(mask_KHW, True))


def _grow(mask_KHW: np.ndarray) -> np.ndarray:
    return np.logical_or.reduce(_shift(mask_KHW, False))


def measure_object(mask_HW: np.ndarray) -> tuple[str, float, float, tuple[float, float]]:
    """The best shape, its radius in px, its overlap with the mask, and the centre (x, y) in px."""
    area = float(mask_HW.sum())
    if area == 0:
        return "none", 0.0, 0.0, (0.0, 0.0)
    rows, columns = np.nonzero(mask_HW)
    x, y = float(columns.mean() + 0.5), float(rows.mean() + 0.5)
    overlaps = {}
    for shape in SHAPES:
        ideal_HW = cover(shape, x, y, (area / AREAS[shape]) ** 0.5, samples=2)
        shared = ideal_HW[mask_HW].sum()
        overlaps[shape] = float(shared / (area + ideal_HW.sum() - shared))
    best = max(SHAPES, key=lambda shape: overlaps[shape] + BLUR_ALLOWANCE.get(shape, 0.0))
    return best, (area / AREAS[best]) ** 0.5, overlaps[best], (x, y)


def _holds(scene: Scene, centres: list[tuple[float, float]]) -> bool:
    if scene.relation is None:
        return True
    (x, y), (other_x, other_y) = centres
    to_x, to_y = RELATIONS[scene.relation]
    along = to_x * (other_x - x) + to_y * (other_y - y)
    across = abs(to_y * (other_x - x)) + abs(to_x * (other_y - y))
    return along > across
