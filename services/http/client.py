"""A Python client of the reward pool's HTTP service. It needs neither Ray nor PyTorch.

pool = ScoreClient("http://127.0.0.1:8000")
answer = pool.score(images, prompts)
answer.scores["pickscore"]
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import requests

from services.base.patience import Away
from services.http.images import Encoding, encode_image
from services.http.session import CONNECT_S, GONE, retry_after_s, session
from services.http.wire import ARROW, Answer, read_answer, write_request

AWAY = (429, 503)
"""The HTTP statuses of a pool that is full or starting."""


class PoolError(Exception):
    """The pool refused a request or stayed busy. The message says why.

    Attributes:
        status: the HTTP status of the refusal; None if there was none.
    """

    def __init__(self, said: str, status: int | None = None) -> None:
        super().__init__(said)
        self.status = status


class PoolAway(PoolError, Away):
    """The pool does not answer, is starting, or is full. The same request may succeed later."""


class ScoreClient:
    """Sends requests to a pool. It retries, with jitter and as `Retry-After` says, if the pool is busy or unreachable.

    Args:
        url: the pool's address, such as `http://127.0.0.1:8000`.
        token: the pool's bearer token, if it asks for one.
        run: the label of the calling run in the pool's metrics and limits.
        timeout_s: seconds for the answer to one request.
        attempts: how often one request is sent at most.
        encoding: how images are sent.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        run: str = "",
        timeout_s: float = 600,
        attempts: int = 6,
        encoding: Encoding = Encoding.PNG,
    ) -> None:
        self.url, self.timeout_s, self.encoding = url.rstrip("/"), timeout_s, encoding
        self.session = session(token, attempts)
        self.session.headers["X-Tempflow-Run"] = run

    def score(
        self,
        images: Sequence[np.ndarray] | np.ndarray,
        prompts: Sequence[str],
        scorers: Sequence[str] | None = None,
        rows: Sequence[Mapping[str, Any]] = (),
        groups: Sequence[str] = (),
    ) -> Answer:
        """Score uint8 (H, W, 3) images of any size with the named scorers, or with all if none are named.

        Args:
            rows: the other columns of each prompt's row, for scorers that read them: values that JSON has.
            groups: the name of each image's group, for groupwise scorers. One request has whole groups.

        Raises:
            PoolError: the pool refused the request, was busy at every attempt, or its answer has no scores.
            TypeError: a row has a value that JSON does not have.
        """
        rows_as_json = [msgspec.json.encode(row) for row in rows]
        encoded = [encode_image(image, self.encoding) for image in images]
        body = write_request(prompts, encoded, rows_as_json, groups)
        query = {"scorers": ",".join(scorers)} if scorers else {}
        answer = self._send("POST", "/v1/score", params=query, data=body, headers={"Content-Type": ARROW})
        try:
            return read_answer(answer.content)
        except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
            raise self._garbage(answer, "scores") from error

    def scorers(self) -> list[dict[str, Any]]:
        """The name, kind and number of running replicas of each scorer.

        Raises:
            PoolError: as `score` raises.
        """
        answer = self._send("GET", "/v1/scorers")
        try:
            return [{**scorer, "name": str(scorer["name"])} for scorer in answer.json()]
        except (ValueError, KeyError, TypeError) as error:
            raise self._garbage(answer, "a list of scorers") from error

    def ready(self) -> None:
        """Check that every scorer of the pool has a running replica.

        Raises:
            PoolAway: a scorer has none yet, or no pool answers.
            PoolError: something other than a pool answers.
        """
        self._send("GET", "/readyz")

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            times = (min(CONNECT_S, self.timeout_s), self.timeout_s)
            answer = self.session.request(method, self.url + path, timeout=times, **options)
        except GONE as error:
            raise PoolAway(f"no answer from {self.url}: {type(error).__name__}") from error
        except requests.RequestException as error:
            raise PoolError(f"the request to {self.url} failed: {error}") from error
        if answer.ok:
            return answer
        ours = _detail(answer)
        said = f"{self.url} answered {answer.status_code}: {ours or answer.text[:200]}"
        if answer.status_code in AWAY or ours is None:
            away = PoolAway(said, answer.status_code)
            away.after_s = retry_after_s(answer.headers.get("Retry-After"))
            raise away
        raise PoolError(said, answer.status_code)

    def _garbage(self, answer: requests.Response, wanted: str) -> PoolError:
        return PoolError(f"{self.url} answered something that is not {wanted}: {answer.content[:100]!r}")


def _detail(answer: requests.Response) -> str | None:
    """The reason in a pool's answer; None if something else answered, such as Serve's proxy without a pool."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return None
