"""GenEval: does the image show the requested objects in the right number, colour and place? (arXiv 2310.11513)

The user runs the object detector as a service, because Mask2Former and its colour classifier need other versions of
libraries. The scoring rule is in this file. The request to the detector and its answer are

    POST url  {"images": [base64 of a PNG, …]}
    →         {"detections": [[{"class": "bench", "score": 0.97, "box": [x0, y0, x1, y1], "color": "red"}, …], …]}

with one list per image. `color` is one of GenEval's ten colours. If the detector does not answer, or answers 429, 502,
503 or 504, the request is sent again. Any other answer is a failure.
"""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from services.base.errors import UserError
from services.base.patience import Away
from services.http.images import encode_image
from services.http.session import BUSY, CONNECT_S, GONE, read_token, retry_after_s, session
from services.scoring.outside import PATIENCE_S, PROBE_TIMEOUT_S, ask_outside, check_url
from services.scoring.row import Row

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
RELATIONS = ("left of", "right of", "above", "below")
POSITION_SLACK = 0.1
"""An object is left of, right of, above or below another one only if their centres differ by more than this share of
the sum of their sizes."""


class DetectorError(Exception):
    """The detector refused a request, or its answer has no detections. The message quotes the answer."""


class GenEval:
    """Scores by GenEval's rule. The row of a prompt says what the image should show: `tag`, `include` and `exclude`.

    The prompt files are therefore GenEval's own metadata.jsonl, or others with these columns.

    Args:
        url: the address of the detector.
        rule: `partial` is Flow-GRPO's training reward, `official` is GenEval's verdict (0 or 1).
        token_file: the file with the detector's bearer token, if it needs one.
        batch_size: images in one request.
        timeout_s: seconds for the answer to one request.
        patience_s: seconds for which a request is repeated.
        metadata: refused by `check`. Earlier versions looked prompts up in these files.
    """

    columns = ("tag", "include")

    def __init__(
        self,
        url: str,
        rule: str = "partial",
        token_file: str | None = None,
        batch_size: int = 16,
        timeout_s: float = 120,
        patience_s: float = PATIENCE_S,
        metadata: object = None,
    ) -> None:
        self.url, self.batch_size, self.timeout_s, self.patience_s = url, batch_size, timeout_s, patience_s
        self.rule = {"partial": partial_credit, "official": official_verdict}[rule]
        self.session = session(read_token(token_file, "GENEVAL_TOKEN"), attempts=1)

    @staticmethod
    def check(
        url: str, rule: str = "partial", token_file: str | None = None, metadata: object = None, **_: object
    ) -> None:
        """Check the rule, the address and the token.

        Raises:
            UserError: one is wrong or missing. The message names it.
        """
        if rule not in ("partial", "official"):
            raise UserError(f"scorer geneval: rule is `{rule}`; it must be partial or official")
        if metadata is not None:
            raise UserError(
                "scorer geneval: remove options.metadata; the scorer reads tag, include and exclude from the rows of "
                "the prompt files, so data.train and data.heldout name GenEval's metadata.jsonl"
            )
        check_url("geneval", url)
        read_token(token_file, "GENEVAL_TOKEN")

    @staticmethod
    def check_row(row: Row) -> None:
        """Check that a row says what to look for.

        Raises:
            KeyError, TypeError, ValueError: it does not have GenEval's form.
        """
        wanted_of(row)

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str], rows: Sequence[Row]) -> np.ndarray:
        scores: list[float] = []
        for start in range(0, len(rows), self.batch_size):
            part = slice(start, start + self.batch_size)
            images = [encode_image(image) for image in images_NHWC[part]]
            found = ask_outside(partial(self._detect, images, self.timeout_s), self.patience_s)
            for row, detections in zip(rows[part], found, strict=True):
                wanted = wanted_of(row)
                scores.append(self.rule(wanted, confident(detections, wanted)))
        return np.array(scores)

    def _detect(self, images: Sequence[bytes], timeout_s: float) -> list[list[dict[str, Any]]]:
        """The detections in each image.

        Raises:
            Away: the detector does not answer, or is busy.
            DetectorError: the answer has no detections.
        """
        body = {"images": [base64.b64encode(image).decode() for image in images]}
        try:
            answer = self.session.post(self.url, json=body, timeout=(min(CONNECT_S, timeout_s), timeout_s))
        except GONE as error:
            raise Away(f"no answer from the detector at {self.url}: {type(error).__name__}") from error
        said = f"the detector at {self.url} answered {answer.status_code}: {answer.text[:200]}"
        if answer.status_code in BUSY:
            away = Away(said)
            away.after_s = retry_after_s(answer)
            raise away
        if not answer.ok:
            raise DetectorError(said)
        try:
            detections = answer.json()["detections"]
            if len(detections) == len(images) and all(_is_detection(seen) for image in detections for seen in image):
                return detections
        except (ValueError, KeyError, TypeError):
            pass  # the answer has another form, which the error below says
        raise DetectorError(f"{said}; this is not a list of detections for each of {len(images)} images")

    def probe(self) -> str:
        """Send the detector one grey image, to check that it answers.

        Raises:
            UserError: the detector does not answer, is busy, or its answer has no detections.
        """
        began = time.perf_counter()
        try:
            self._detect([encode_image(np.full((512, 512, 3), 128, np.uint8))], PROBE_TIMEOUT_S)
        except (Away, DetectorError) as error:
            raise UserError(f"{error}; start the detector, or set options.url or options.token_file") from error
        return f"the detector at {self.url} answers in {time.perf_counter() - began:.1f} s"


def _is_detection(seen: dict[str, Any]) -> bool:
    """Whether an item of the detector's answer is an object with a class, a score and a box."""
    numbers = [seen["score"], *seen["box"]]
    return isinstance(seen["class"], str) and len(numbers) == 5 and all(isinstance(n, int | float) for n in numbers)


@dataclass(frozen=True)
class Object:
    """A detected object."""

    box: tuple[float, float, float, float]
    color: str | None = None


Found = dict[str, list[Object]]
"""The detected objects by class, the most certain first."""


def wanted_of(row: Row) -> dict[str, Any]:
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


def confident(detections: Sequence[dict[str, Any]], wanted: dict[str, Any]) -> Found:
    """The detections above the threshold, which is higher for the tag `counting`, and at most 16 of each class."""
    threshold = COUNTING_THRESHOLD if wanted["tag"] == "counting" else THRESHOLD
    found: Found = {}
    for seen in sorted(detections, key=lambda seen: -seen["score"]):
        of_class = found.setdefault(seen["class"], [])
        if seen["score"] > threshold and len(of_class) < MAX_OBJECTS:
            of_class.append(Object(tuple(seen["box"]), seen.get("color")))
    return found


def official_verdict(wanted: dict[str, Any], found: Found) -> float:
    """1 if the most certain objects fulfil every `include` and no `exclude`, else 0."""
    groups: list[list[Object] | None] = []
    for need in wanted["include"]:
        objects = found.get(need["class"], [])[: need["count"]]
        right = len(objects) == need["count"] and _coloured(need, objects) == need["count"]
        right = right and _placed(need, objects, groups)
        groups.append(objects if right else None)
    too_many = any(len(found.get(bar["class"], [])) >= bar["count"] for bar in wanted["exclude"])
    return float(None not in groups and not too_many)


def partial_credit(wanted: dict[str, Any], found: Found) -> float:
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
