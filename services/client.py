"""A Python client of the reward pool's HTTP side; needs neither Ray nor Torch.

pool = ScoreClient("http://127.0.0.1:8000")
answer = pool.score(images, prompts)
answer.scores["pickscore"]
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import requests

from services.http import session
from services.images import encode_image
from services.serving.wire import ARROW, Answer, read_answer, write_request


class PoolError(Exception):
    """The pool refused a request or stayed busy; says why."""


class ScoreClient:
    """Asks a pool; a busy or unreachable one is asked again, with jitter and its own `Retry-After`.

    Args:
        url: of the pool, such as `http://127.0.0.1:8000`.
        token: its bearer token, if it asks for one.
        run: label of the calling run, on the pool's metrics and limits.
        timeout_s: of one request.
        attempts: of one request.
    """

    def __init__(
        self, url: str, token: str | None = None, run: str = "", timeout_s: float = 600, attempts: int = 6
    ) -> None:
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self.session = session(token, attempts)
        self.session.headers["X-Tempflow-Run"] = run

    def score(
        self, images: Sequence[np.ndarray] | np.ndarray, prompts: Sequence[str], scorers: Sequence[str] | None = None
    ) -> Answer:
        """Score uint8 (H, W, 3) images, of any sizes, with the named scorers (all if not given).

        Raises:
            PoolError: refused, or still busy after every attempt.
        """
        body = write_request(prompts, [encode_image(image) for image in images])
        query = {"scorers": ",".join(scorers)} if scorers else {}
        return read_answer(
            self._send("POST", "/v1/score", params=query, data=body, headers={"Content-Type": ARROW}).content
        )

    def scorers(self) -> list[dict[str, Any]]:
        """Name, kind and running replicas of each scorer.

        Raises:
            PoolError: as `score`.
        """
        return self._send("GET", "/v1/scorers").json()

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            answer = self.session.request(method, self.url + path, timeout=self.timeout_s, **options)
        except requests.RequestException as error:
            raise PoolError(f"no answer from {self.url}: {type(error).__name__}") from error
        if not answer.ok:
            raise PoolError(f"{self.url} answered {answer.status_code}: {_detail(answer)}")
        return answer


def _detail(answer: requests.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]
