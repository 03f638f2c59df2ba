"""GenEval's rule on rendered scenes with known answers: the judge's pixel rules serve as the detector."""

import numpy as np
import pytest

from services.scoring.geneval.mask2former import box_of
from services.scoring.geneval.rule import COLOURS, confident, official_verdict, partial_credit, relations
from system.miniature.judge import Judge, measure_object
from system.miniature.world import (
    BACKGROUNDS,
    IMAGE_PX,
    RELATIONS,
    SHAPES,
    Placed,
    Scene,
    Thing,
    paint,
    place,
)

NAMED = tuple(colour for colour in ("red", "green", "blue", "yellow", "purple") if colour in COLOURS)
LEAST_PX = 40


def detections(image_HWC):
    """Each patch of one colour is an object, whose class is the shape that the judge measures."""
    areas = Judge().areas(image_HWC)
    ground = max(areas, key=lambda colour: areas[colour].sum())
    found = []
    for colour, area_HW in areas.items():
        for mask_HW in patches(area_HW) if colour != ground else []:
            shape, _, overlap, _ = measure_object(mask_HW)
            found.append({"class": shape, "score": min(overlap + 0.2, 1.0), "box": box_of(mask_HW), "color": colour})
    return found


def patches(mask_HW):
    """The connected parts of a mask that have at least 40 pixels."""
    left, found = mask_HW.copy(), []
    while left.any():
        part, before = np.zeros_like(left), -1
        part.flat[left.argmax()] = True
        while part.sum() != before:
            before = part.sum()
            padded = np.pad(part, 1)
            around = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
            part |= around & left
        left &= ~part
        if part.sum() >= LEAST_PX:
            found.append(part)
    return found


def scores(image_HWC, wanted):
    found = confident(detections(image_HWC), wanted)
    return official_verdict(wanted, found), partial_credit(wanted, found)


def pair(first, second, relation):
    """GenEval's request for two objects: the first one, and the second in the opposite relation to it."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]
    include = [
        {"class": first.shape, "count": 1, "color": first.colour},
        {"class": second.shape, "count": 1, "color": second.colour, "position": [opposite, 0]},
    ]
    return {"tag": "position", "include": include, "exclude": []}


@pytest.mark.parametrize("seed", range(24))
def test_positions_and_colours(seed):
    rng = np.random.default_rng(seed)
    colours, shapes = rng.permutation(NAMED)[:2].tolist(), rng.permutation(SHAPES)[:2].tolist()
    first, second = (Thing("small", colour, shape) for colour, shape in zip(colours, shapes, strict=True))
    relation = list(RELATIONS)[seed % 4]
    image = paint(place(Scene((first, second), "grey", relation), rng), BACKGROUNDS["grey"])
    assert scores(image, pair(first, second, relation)) == (1, 1)
    for wrong in set(RELATIONS) - {relation}:
        official, credit = scores(image, pair(first, second, wrong))
        assert official == 0
        assert credit == pytest.approx(4 / 5), "two counts and two colours of five requests are right"
    swapped = pair(Thing("small", second.colour, first.shape), Thing("small", first.colour, second.shape), relation)
    assert scores(image, swapped) == (0, pytest.approx(2 / 4)), "both counts are right, both colours wrong"


@pytest.mark.parametrize("shown", range(1, 5))
@pytest.mark.parametrize("shape", ["square", "ring"])
def test_counts(shape, shown):
    corners = [(16, 16), (48, 16), (16, 48), (48, 48)]
    things = [Placed(Thing("small", "red", shape), x, y, 8.0) for x, y in corners[:shown]]
    image = paint(things, BACKGROUNDS["white"])
    for wanted in range(1, 5):
        asked = {
            "tag": "counting",
            "include": [{"class": shape, "count": wanted}],
            "exclude": [{"class": shape, "count": wanted + 1}],
        }
        assert scores(image, asked) == (float(shown == wanted), pytest.approx(1 - abs(shown - wanted) / wanted))


def test_the_detector_finds_the_boxes_that_were_painted():
    things = [Placed(Thing("small", "red", "square"), 16, 20, 8.0), Placed(Thing("small", "blue", "ring"), 48, 44, 8.0)]
    found = {d["color"]: d for d in detections(paint(things, BACKGROUNDS["white"]))}
    assert set(found) == {"red", "blue"}
    for thing in things:
        box = np.array(found[thing.thing.colour]["box"])
        assert np.abs((box[:2] + box[2:]) / 2 - (thing.x_px, thing.y_px)).max() <= 1
        assert found[thing.thing.colour]["class"] == thing.thing.shape
        assert box.max() <= IMAGE_PX
    red, blue = (confident([found[c]], {"tag": ""})[found[c]["class"]][0] for c in ("red", "blue"))
    assert relations(red, blue) == {"left of", "above"}
