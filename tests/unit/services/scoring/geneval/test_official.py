"""The official rule against another implementation of it, on random detections and prompts."""

import math

import numpy as np
import pytest

from services.scoring.geneval.rule import COLOURS, confident, official_verdict

CLASSES = ("cup", "dog", "bench")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def iou(a, b):
    """By counting pixels: a box has the pixels from its first to its last corner."""
    of_a, of_b = ({(x, y) for x in range(q[0], q[2] + 1) for y in range(q[1], q[3] + 1)} for q in (a, b))
    return len(of_a & of_b) / len(of_a | of_b)


def is_placed(relation, a, b):
    """Shortens the offset of the centres by a tenth of both sizes, then asks for half of its length on the axis."""
    centre = [(a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2 for i in (0, 1)]
    slack = [0.1 * (a[i + 2] - a[i] + b[i + 2] - b[i]) for i in (0, 1)]
    rest = [math.copysign(max(abs(c) - s, 0), c) for c, s in zip(centre, slack, strict=True)]
    if abs(rest[0]) < 1e-3 and abs(rest[1]) < 1e-3:
        return False
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    return sign * rest[axis] / math.hypot(*centre) > 0.5


def verdict(wanted, detections, max_overlap):
    """The rule step by step, on one list of detections."""
    limit = 0.9 if wanted["tag"] == "counting" else 0.3
    by_class = {}
    for name in CLASSES:
        ranked = sorted((d for d in detections if d["class"] == name and d["score"] > limit), key=lambda d: -d["score"])
        ranked = ranked[:16]
        if max_overlap < 1:
            left, ranked = ranked, []
            while left:
                best, *others = left
                ranked.append(best)
                left = [d for d in others if iou(best["box"], d["box"]) < max_overlap]
        by_class[name] = ranked
    fulfilled = []
    for need in wanted["include"]:
        best = by_class[need["class"]][: need["count"]]
        ok = len(best) >= need["count"]
        if ok and "color" in need:
            ok = [d["color"] for d in best].count(need["color"]) >= need["count"]
        if ok and "position" in need:
            relation, target = need["position"]
            if fulfilled[target] is None:
                ok = False
            else:
                ok = all(is_placed(relation, d["box"], t["box"]) for d in best for t in fulfilled[target])
        fulfilled.append(best if ok else None)
    if any(group is None for group in fulfilled):
        return 0
    return int(not any(len(by_class[bar["class"]]) >= bar["count"] for bar in wanted["exclude"]))


def random_detections(rng, wanted):
    """Objects of every class, biased so that the request is sometimes fulfilled."""
    colours = [need.get("color", "red") for need in wanted["include"]]
    found = []
    for name in CLASSES:
        for _ in range(rng.integers(0, 4) if rng.random() < 0.9 else 20):
            x, y = rng.integers(0, 80, 2).tolist()
            width, height = rng.integers(1, 30, 2).tolist()
            box = [x, y, x + width, y + height]
            if found and rng.random() < 0.3:
                box = found[-1]["box"]
            colour = str(rng.choice(colours if rng.random() < 0.7 else COLOURS))
            score = float(rng.choice([0.1, 0.3, 0.5, 0.9, 0.95])) + 1e-6 * len(found)
            found.append({"class": name, "score": score, "box": box, "color": colour})
    return [found[i] for i in rng.permutation(len(found))]


def random_request(rng):
    tag = str(rng.choice(TAGS))
    include = []
    for place, name in enumerate(rng.permutation(CLASSES)[: rng.integers(1, 3)]):
        need = {"class": str(name), "count": int(rng.integers(1, 3))}
        if rng.random() < 0.4:
            need["color"] = str(rng.choice(COLOURS))
        if place and rng.random() < 0.7:
            need["position"] = [str(rng.choice(["left of", "right of", "above", "below"])), 0]
        include.append(need)
    exclude = [{"class": include[0]["class"], "count": include[0]["count"] + 1}] if rng.random() < 0.3 else []
    return {"tag": tag, "include": include, "exclude": exclude}


@pytest.mark.parametrize("max_overlap", [1.0, 0.5])
def test_200_random_scenes_and_prompts(max_overlap):
    rng = np.random.default_rng(7)
    verdicts = []
    for _ in range(200):
        wanted = random_request(rng)
        seen = random_detections(rng, wanted)
        expected = verdict(wanted, seen, max_overlap)
        assert official_verdict(wanted, confident(seen, wanted, max_overlap)) == expected, (wanted, seen)
        verdicts.append(expected)
    assert 30 < sum(verdicts) < 170, "both verdicts occur often"
