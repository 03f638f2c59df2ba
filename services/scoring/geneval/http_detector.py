"""GenEval's object detector as a service that the user runs.

The request and its answer, with one list of detections (see `rule`) per image, are

    POST url  {"images": [base64 of a PNG, …]}
    →         {"detections": [[{"class": "bench", "score": 0.97, "box": [x0, y0, x1, y1], "color": "red"}, …], …]}

If the detector does not answer, or answers 429, 502, 503 or 504, the request is sent again. Any other answer is a
failure.
"""

import base64
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from services.base.errors import UserError
from services.base.patience import Away
from services.http.images import encode_image
from services.http.session import BUSY, CONNECT_S, GONE, read_token, retry_after_s, session
from services.scoring.geneval.rule import Detection, Wanted
from services.scoring.outside import PROBE_TIMEOUT_S, ask_outside


class DetectorError(Exception):
    """The detector refused a request, or its answer has no detections. The message quotes the answer."""


class HttpDetector:
    """Sends images to the detector at `url`. Its options are those of `GenEval`."""

    classes: frozenset[str] | None = None
    """The classes that it can find are not known."""

    def __init__(self, url: str, token_file: str | None, batch_size: int, timeout_s: float, patience_s: float) -> None:
        self.url, self.batch_size, self.timeout_s, self.patience_s = url, batch_size, timeout_s, patience_s
        self.session = session(read_token(token_file, "GENEVAL_TOKEN"), attempts=1)

    def __call__(self, images_NHWC: np.ndarray, wanted: Sequence[Wanted]) -> list[list[Detection]]:
        """The detections in each image, uint8 (N, H, W, 3), with their colours.

        Raises:
            Away: the detector does not answer for `patience_s`.
            DetectorError: the answer has no detections.
        """
        found: list[list[Detection]] = []
        for start in range(0, len(images_NHWC), self.batch_size):
            images = [encode_image(image) for image in images_NHWC[start : start + self.batch_size]]
            found += ask_outside(partial(self._detect, images, self.timeout_s), self.patience_s)
        return found

    def _detect(self, images: Sequence[bytes], timeout_s: float) -> list[list[Detection]]:
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
            away.after_s = retry_after_s(answer.headers.get("Retry-After"))
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
