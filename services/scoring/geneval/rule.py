"""GenEval's rule: does an image show the requested objects in the right number, colour and place? (arXiv 2310.11513)

The constants and the rule are those of evaluation/evaluate_images.py in github.com/djghosh13/geneval.

A detection is what a detector finds in an image:

    {"class": "bench", "score": 0.97, "box": [x0, y0, x1, y1], "color": "red"}

Boxes are in pixels. `color` is one of `COLOURS`, and is needed only where the row requests a colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.scoring.row import Row

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
NO_SUPPRESSION = 1.0
"""The default of `max_overlap`, as in GenEval: objects may overlap in any way."""
RELATIONS = ("left of", "right of", "above", "below")
POSITION_SLACK = 0.1
"""An object is left of, right of, above or below another one only if their centres differ by more than this share of
the sum of their sizes."""

Detection = dict[str, Any]
Wanted = dict[str, Any]
"""What an image should show: `tag`, `include` and `exclude`."""


@dataclass(frozen=True)
class Object:
    """A detected object."""

    box: tuple[float, float, float, float]
    color: str | None = None


Found = dict[str, list[Object]]
"""The detected objects by class, the most certain first."""


def wanted_of(row: Row) -> Wanted:
    """The part of a prompt's row that the rule needs.

    Raises:
        KeyError, TypeError, ValueError: the row does not have GenEval's form.
    """
    include, exclude = _needs(row["include"]), _needs(row.get("exclude") or [])
    if not isinstance(row["tag"], str):
        raise TypeError(f"has the tag {row['tag']}, which is not text")
    for place, need in enumerate(include + exclude):
        if not isinstance(need["class"], str) or type(need["count"]) is not int or need["count"] < 1:
            raise ValueError(f"asks for {need}, whose class is not text or whose count is not a whole number above 0")
        if "color" in need and need["color"] not in COLOURS:
            raise ValueError(f"asks for {need}, whose colour is not one of {', '.join(COLOURS)}")
        if "position" in need:
            relation, target = need["position"]
            if relation not in RELATIONS or target not in range(min(place, len(include))):
                raise ValueError(f"asks for {need}, whose position is not a relation to an earlier object")
    return {"tag": row["tag"], "include": include, "exclude": exclude}


def _needs(listed: Any) -> list[dict[str, Any]]:
    """A list of requested objects. Parquet has None for keys that JSON leaves out; these keys are removed."""
    if not isinstance(listed, list) or not all(isinstance(need, dict) for need in listed):
        raise TypeError(f"has {listed}, which is not a list of objects")
    return [{key: value for key, value in need.items() if value is not None} for need in listed]


def classes_of(wanted: Wanted) -> set[str]:
    """The classes that the rule asks about."""
    return {need["class"] for need in wanted["include"] + wanted["exclude"]}


def threshold_of(wanted: Wanted) -> float:
    """The score that a detection must exceed. It is higher for the tag `counting`."""
    return COUNTING_THRESHOLD if wanted["tag"] == "counting" else THRESHOLD


def confident(detections: Sequence[Detection], wanted: Wanted, max_overlap: float = NO_SUPPRESSION) -> Found:
    """The detections above the threshold: at most 16 of each class, without those that a more certain one suppresses.

    Args:
        max_overlap: the intersection over union from which an object suppresses a less certain one of its class. With
            1, nothing is suppressed.
    """
    threshold = threshold_of(wanted)
    of_class: dict[str, list[Object]] = {}
    for seen in sorted(detections, key=lambda seen: -seen["score"]):
        if seen["score"] > threshold:
            of_class.setdefault(seen["class"], []).append(Object(tuple(seen["box"]), seen.get("color")))
    return {name: _suppressed(objects[:MAX_OBJECTS], max_overlap) for name, objects in of_class.items()}


def _suppressed(objects: Sequence[Object], max_overlap: float) -> list[Object]:
    kept: list[Object] = []
    for object_ in objects:
        if max_overlap == NO_SUPPRESSION or all(overlap(one, object_) < max_overlap for one in kept):
            kept.append(object_)
    return kept


def overlap(one: Object, other: Object) -> float:
    """Intersection over union of two boxes, whose last pixels belong to them."""
    first_22, second_22 = np.array(one.box, float).reshape(2, 2), np.array(other.box, float).reshape(2, 2)
    low_2, high_2 = np.maximum(first_22[0], second_22[0]), np.minimum(first_22[1], second_22[1])
    shared = _area(low_2, high_2)
    union = _area(*first_22) + _area(*second_22) - shared
    return shared / union if union else 0.0


def _area(low_2: np.ndarray, high_2: np.ndarray) -> float:
    return float(np.prod(np.maximum(high_2 - low_2 + 1, 0)))


def official_verdict(wanted: Wanted, found: Found) -> float:
    """1 if the most certain objects fulfil every `include` and no `exclude`, else 0."""
    groups: list[list[Object] | None] = []
    for need in wanted["include"]:
        objects = found.get(need["class"], [])[: need["count"]]
        right = len(objects) == need["count"] and _coloured(need, objects) == need["count"]
        right = right and _placed(need, objects, groups)
        groups.append(objects if right else None)
    too_many = any(len(found.get(bar["class"], [])) >= bar["count"] for bar in wanted["exclude"])
    return float(None not in groups and not too_many)


def partial_credit(wanted: Wanted, found: Found) -> float:
    """Flow-GRPO's training reward: the mean credit over all requests (arXiv 2505.05470, appendix).

    A count, of objects or of objects in the requested colour, earns 1 − |found − asked| / asked. If the number of
    objects is wrong, colour and place together earn one 0. Deviation: a wrong place earns a single 0; the reference's
    code also adds a 1.
    """
    credits: list[float] = []
    groups: list[list[Object] | None] = []
    for need in wanted["include"]:
        objects, count = found.get(need["class"], []), need["count"]
        credits.append(1 - abs(count - len(objects)) / count)
        right = len(objects) == count
        if not right and ("color" in need or "position" in need):
            credits.append(0.0)
        if right and "color" in need:
            credits.append(1 - abs(count - _coloured(need, objects)) / count)
            right = _coloured(need, objects) == count
        if right and "position" in need:
            right = _placed(need, objects, groups)
            credits.append(float(right))
        groups.append(objects if right else None)
    return sum(credits) / len(credits) if credits else 0.0


def _coloured(need: dict[str, Any], objects: Sequence[Object]) -> int:
    """How many objects have the requested colour. If no colour is requested, all count."""
    return sum(object_.color == need.get("color", object_.color) for object_ in objects)


def _placed(need: dict[str, Any], objects: Sequence[Object], groups: Sequence[list[Object] | None]) -> bool:
    """Whether every object has the requested position relative to every object of the other group."""
    if "position" not in need:
        return True
    relation, target = need["position"]
    others = groups[target]
    return others is not None and all(relation in relations(one, other) for one in objects for other in others)


def relations(one: Object, other: Object) -> set[str]:
    """The position of `one` relative to `other`: a subset of `left of`, `right of`, `above` and `below`."""
    boxes_222 = np.array([one.box, other.box], float).reshape(2, 2, 2)
    offset_2 = np.subtract(*boxes_222.mean(axis=1))
    size_2 = np.abs(boxes_222[:, 1] - boxes_222[:, 0]).sum(axis=0)
    beyond_2 = np.maximum(np.abs(offset_2) - POSITION_SLACK * size_2, 0) * np.sign(offset_2)
    if np.all(np.abs(beyond_2) < 1e-3):
        return set()
    x, y = beyond_2 / np.linalg.norm(offset_2)
    held = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in held.items() if holds}
