"""The world of shapes: a caption grammar, its scenes and a renderer.

A caption names one object or two objects in a relation, and a background:

    a small red ring on a blue background
    a large red ring left of a small blue square on a white background

Images are 64x64 RGB. Lengths are in pixels, x grows to the right and y grows downwards.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

IMAGE_PX = 64
MARGIN_PX = 1.0
GAP_PX = 2.0
SUPERSAMPLING = 4

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (40, 70, 220),
    "yellow": (245, 215, 50),
    "purple": (165, 45, 195),
    "cyan": (60, 205, 220),
}
BACKGROUNDS = {
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "grey": (130, 130, 130),
    "blue": (40, 70, 220),
}
PALETTE = COLOURS | BACKGROUNDS
SHAPES = ("ring", "square", "triangle", "cross")
"""These shapes differ much in pixels. With a disc instead of the ring, a policy of this size draws hybrids of disc,
square and cross."""
RING_HOLE, CROSS_ARM = 0.45, 0.36
"""The radius of the ring's hole, and half the width of the cross's arms, for a shape of radius 1."""
RELATIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""The direction (x, y) from the first object to the second, for each relation."""
SIZES = {"small": (7.0, 9.0), "large": (10.5, 12.5)}
"""The range of radii in pixels of each size."""
SIZE_LIMIT_PX = 9.5
GRID_PX = 16
GRID_RADIUS_PX = {"small": 8.0, "large": 11.0}
"""The radius of objects on the grid. There, objects have two sizes and nine possible places; `place` can vary both."""

HELD_OUT_COLOUR_PAIRS = {("red", "blue"), ("yellow", "green"), ("cyan", "purple"), ("green", "cyan")}
"""(first colour, second colour) that no train caption contains in this order."""

_NOUN = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_NOUN}(?: ({'|'.join(RELATIONS)}) {_NOUN})? on a ({'|'.join(BACKGROUNDS)}) background")


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One object, or two objects of different colours and the relation of the first to the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def category(self) -> str:
        """Either "single" or "relation"."""
        return "single" if self.relation is None else "relation"


def parse(text: str) -> Scene:
    """The scene of a caption.

    Raises:
        ValueError: the caption does not follow the grammar, or its scene is not valid.
    """
    match = _CAPTION.fullmatch(text)
    if match is None:
        raise ValueError(f"The caption {text!r} does not follow the grammar of shapes.")
    *first, relation, size, colour, shape, background = match.groups()
    things = (Thing(*first),) if relation is None else (Thing(*first), Thing(size, colour, shape))
    scene = Scene(things, background, relation)
    if not is_valid(scene):
        raise ValueError(f"The caption {text!r} gives one colour to two of its objects and background.")
    return scene


def caption(scene: Scene) -> str:
    """The caption of a scene. It is the inverse of `parse`."""
    nouns = [f"a {thing.size} {thing.colour} {thing.shape}" for thing in scene.things]
    return f"{f' {scene.relation} '.join(nouns)} on a {scene.background} background"


def is_valid(scene: Scene) -> bool:
    """Whether all objects differ in colour from each other and from the background."""
    colours = [thing.colour for thing in scene.things] + [scene.background]
    return len(set(colours)) == len(colours)


def all_scenes(category: str) -> Iterator[Scene]:
    """Every valid scene of a category ("single" or "relation") in a fixed order."""
    things = [Thing(*words) for words in itertools.product(SIZES, COLOURS, SHAPES)]
    if category == "single":
        candidates = (Scene((thing,), ground) for thing in things for ground in BACKGROUNDS)
    elif category == "relation":
        candidates = (
            Scene(pair, ground, relation)
            for pair in itertools.permutations(things, 2)
            for relation in RELATIONS
            for ground in BACKGROUNDS
        )
    else:
        raise ValueError(f"The category {category!r} is neither 'single' nor 'relation'.")
    return (scene for scene in candidates if is_valid(scene))


def is_held_out(scene: Scene) -> bool:
    """Whether a scene has a combination that does not occur in train captions.

    These are each (colour, shape) on one of the four backgrounds, and four ordered pairs of colours.
    """
    colours, grounds = list(COLOURS), list(BACKGROUNDS)
    for thing in scene.things:
        kept_for = colours.index(thing.colour) + SHAPES.index(thing.shape)
        if grounds.index(scene.background) == kept_for % len(grounds):
            return True
    return tuple(thing.colour for thing in scene.things) in HELD_OUT_COLOUR_PAIRS


def split(category: str) -> tuple[list[Scene], list[Scene]]:
    """The train scenes and the held-out scenes of a category. They are disjoint, complete and in a fixed order."""
    scenes = list(all_scenes(category))
    return [s for s in scenes if not is_held_out(s)], [s for s in scenes if is_held_out(s)]


def alterations(scene: Scene) -> dict[str, list[Scene]]:
    """The valid scenes that differ from `scene` in one attribute, by the name of the attribute.

    The attributes are background, size, colour and shape, and for two objects also relation and "swap" (the two
    colours are exchanged).
    """
    altered: dict[str, list[Scene]] = {"background": [replace(scene, background=g) for g in BACKGROUNDS]}
    for attribute, values in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES)):
        altered[attribute] = [
            replace(scene, things=(*scene.things[:i], replace(thing, **{attribute: value}), *scene.things[i + 1 :]))
            for i, thing in enumerate(scene.things)
            for value in values
        ]
    if scene.relation is not None:
        first, second = scene.things
        altered["relation"] = [replace(scene, relation=relation) for relation in RELATIONS]
        swapped = (replace(first, colour=second.colour), replace(second, colour=first.colour))
        altered["swap"] = [replace(scene, things=swapped)]
    return {name: [s for s in scenes if s != scene and is_valid(s)] for name, scenes in altered.items()}


def cover(shape: str, x_px: float, y_px: float, radius_px: float, samples: int = SUPERSAMPLING) -> np.ndarray:
    """The share of each pixel that a shape covers, float32 (64, 64) in [0, 1], from samples² points per pixel."""
    cover_HW = np.zeros((IMAGE_PX, IMAGE_PX), np.float32)
    reach_px = 1.4 * radius_px + 1
    left, right = (int(np.clip(x_px + side * reach_px, 0, IMAGE_PX)) for side in (-1, 1))
    top, bottom = (int(np.clip(y_px + side * reach_px, 0, IMAGE_PX)) for side in (-1, 1))
    u = ((np.arange(left * samples, right * samples, dtype=np.float32) + 0.5) / samples - x_px) / radius_px
    v = ((np.arange(top * samples, bottom * samples, dtype=np.float32) + 0.5) / samples - y_px) / radius_px
    inside = _inside(shape, u[None, :], v[:, None]).reshape(bottom - top, samples, right - left, samples)
    cover_HW[top:bottom, left:right] = inside.mean((1, 3), dtype=np.float32)
    return cover_HW


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points are inside a shape. Their coordinates (u, v) are in radii from the shape's centroid."""
    if shape == "ring":
        return (u**2 + v**2 <= 1) & (u**2 + v**2 >= RING_HOLE**2)
    if shape == "square":
        return (abs(u) <= 0.92) & (abs(v) <= 0.92)
    if shape == "triangle":
        return (v <= 0.58) & (abs(u) <= 0.57 * (v + 1.16))
    if shape == "cross":
        return ((abs(u) <= CROSS_ARM) & (abs(v) <= 1)) | ((abs(v) <= CROSS_ARM) & (abs(u) <= 1))
    raise ValueError(f"The shape {shape!r} is not one of {', '.join(SHAPES)}.")


AREAS = {
    "ring": np.pi * (1 - RING_HOLE**2),
    "square": 1.84**2,
    "triangle": 0.57 * 1.74**2,
    "cross": 8 * CROSS_ARM - 4 * CROSS_ARM**2,
}
"""The area of each shape at radius 1."""
REACH = {"ring": (1, 1), "square": (0.92, 0.92), "triangle": (1.16, 0.58), "cross": (1, 1)}
"""The extent of each shape upwards and downwards from its centre at radius 1."""
REACH_SIDE = {"ring": 1, "square": 0.92, "triangle": 1, "cross": 1}
"""The extent of each shape to either side of its centre at radius 1."""


@dataclass(frozen=True)
class Placed:
    """An object with its centroid and its radius in pixels."""

    thing: Thing
    x_px: float
    y_px: float
    radius_px: float


def place(scene: Scene, rng: np.random.Generator, anywhere: bool = False) -> list[Placed]:
    """Place the objects of a scene at random grid points that fulfil the relation. None touches another or the edge.

    With `anywhere`, there is no grid, and sizes vary within their ranges.
    """
    while True:
        placed = []
        for thing in scene.things:
            radius = rng.uniform(*SIZES[thing.size]) if anywhere else GRID_RADIUS_PX[thing.size]
            up, down = REACH[thing.shape]
            half_width, half_height = radius * REACH_SIDE[thing.shape], radius * (up + down) / 2
            x = _coordinate(half_width + MARGIN_PX, rng, anywhere)
            y = _coordinate(half_height + MARGIN_PX, rng, anywhere) + radius * (up - down) / 2
            placed.append(Placed(thing, x, y, float(radius)))
        if scene.relation is None or _holds(scene.relation, *placed):
            return placed


def _coordinate(margin_px: float, rng: np.random.Generator, anywhere: bool) -> float:
    """A random coordinate for the middle of an object that extends `margin_px` to both sides."""
    if anywhere:
        return float(rng.uniform(margin_px, IMAGE_PX - margin_px))
    last = int((IMAGE_PX - margin_px) // GRID_PX)
    return float(GRID_PX * rng.integers(np.ceil(margin_px / GRID_PX), last + 1))


def _holds(relation: str, first: Placed, second: Placed) -> bool:
    dx, dy = second.x_px - first.x_px, second.y_px - first.y_px
    to_x, to_y = RELATIONS[relation]
    along, across = to_x * dx + to_y * dy, abs(to_y * dx + to_x * dy)
    if to_x:
        reach = REACH_SIDE[first.thing.shape] * first.radius_px + REACH_SIDE[second.thing.shape] * second.radius_px
    else:
        upper, lower = (first, second) if to_y > 0 else (second, first)
        reach = REACH[upper.thing.shape][1] * upper.radius_px + REACH[lower.thing.shape][0] * lower.radius_px
    return along >= reach + GAP_PX and across <= 0.7 * along


def paint(placed: list[Placed], background: tuple[int, int, int], opacity: float = 1.0) -> np.ndarray:
    """Draw placed objects on a background given as RGB. Returns an image, uint8 (64, 64, 3)."""
    image_HWC = np.empty((IMAGE_PX, IMAGE_PX, 3), np.float32)
    image_HWC[:] = background
    for item in placed:
        alpha_HW1 = opacity * cover(item.thing.shape, item.x_px, item.y_px, item.radius_px)[..., None]
        image_HWC += alpha_HW1 * (np.array(COLOURS[item.thing.colour], np.float32) - image_HWC)
    return np.rint(image_HWC).astype(np.uint8)


def render(scene: Scene, rng: np.random.Generator, anywhere: bool = False) -> np.ndarray:
    """Draw a scene with objects at random positions (see `place`). Returns an image, uint8 (64, 64, 3)."""
    return paint(place(scene, rng, anywhere), BACKGROUNDS[scene.background])
