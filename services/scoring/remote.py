"""Calls a scorer of another reward pool over HTTP: a pool on another cluster, or any service with our API."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import numpy as np

from services.base.errors import UserError
from services.http.client import PoolError, ScoreClient
from services.http.images import Encoding
from services.http.session import read_token
from services.scoring.loaded import DEFAULT_SUB_SCORE
from services.scoring.outside import PATIENCE_S, PROBE_TIMEOUT_S, ask_outside, check_url
from services.scoring.row import Row

log = logging.getLogger(__name__)


class Remote:
    """Scores with a pool's scorer, and passes its sub-scores on. It waits while the pool is away, starting or full.

    It sends the rows of the prompts; the pool reads them if its scorer does. The score that the pool's own recipe
    chooses is the sub-score `score`, if there are others.

    Args:
        url: the address of the pool.
        scorer: the scorer's name in that pool.
        token_file: the file with the pool's bearer token. If not given, TEMPFLOW_TOKEN in the environment is used.
        run: the label of this run in the pool's metrics and limits.
        timeout_s: seconds for the answer to one request.
        patience_s: seconds for which a request is repeated.
        encoding: how images are sent: `png` (without loss), `jpeg` (fewer bytes, slightly different scores) or `raw`
            (without loss, more bytes, no time for packing).
    """

    groupwise = False

    def __init__(
        self,
        url: str,
        scorer: str,
        token_file: str | None = None,
        run: str = "",
        timeout_s: float = 600,
        patience_s: float = PATIENCE_S,
        encoding: str = Encoding.PNG,
    ) -> None:
        self.url, self.scorer, self.run, self.patience_s = url, scorer, run, patience_s
        self.token = read_token(token_file)
        self.client = ScoreClient(url, self.token, run, timeout_s, 1, encoding_of(encoding))

    @staticmethod
    def check(url: str, scorer: str, token_file: str | None = None, encoding: str = Encoding.PNG, **_: object) -> None:
        """Check the address and the encoding, and that the token can be read.

        Raises:
            UserError: one is wrong or missing. The message names it.
        """
        check_url("remote", url)
        encoding_of(encoding)
        read_token(token_file)

    def __call__(
        self, images_NHWC: np.ndarray, prompts: Sequence[str], rows: Sequence[Row]
    ) -> np.ndarray | Mapping[str, np.ndarray]:
        groups = ["all"] * len(prompts) if self.groupwise else []
        answer = ask_outside(
            lambda: self.client.score(images_NHWC, prompts, [self.scorer], rows, groups), self.patience_s
        )
        if self.scorer not in answer.scores:
            raise PoolError(f"{self.url} answered without scores of `{self.scorer}`")
        if answer.errors:
            first, reason = min(answer.errors.items())
            log.warning("%d images have no score; of prompt %s: %s", len(answer.errors), prompts[first], reason)
        sub = f"{self.scorer}."
        sub_scores = {name.removeprefix(sub): values for name, values in answer.scores.items() if name.startswith(sub)}
        score_N = answer.scores[self.scorer]
        return {**sub_scores, DEFAULT_SUB_SCORE: score_N} if sub_scores else score_N

    def probe(self) -> str:
        """Ask the pool once whether it has the scorer.

        Raises:
            UserError: the pool does not answer, refuses the token, or does not have the scorer.
        """
        client = ScoreClient(self.url, self.token, self.run, PROBE_TIMEOUT_S, attempts=1)
        try:
            known = [found["name"] for found in client.scorers()]
        except PoolError as error:
            refused = error.status == HTTPStatus.UNAUTHORIZED
            fix = "set options.token_file or TEMPFLOW_TOKEN" if refused else "start it, or set options.url"
            raise UserError(f"{error}; {fix}") from error
        if self.scorer not in known:
            raise UserError(
                f"{self.url} has no scorer `{self.scorer}`; set options.scorer to one of {', '.join(known)}"
            )
        return f"{self.url} has {self.scorer}"


def encoding_of(setting: str) -> Encoding:
    """The encoding with this name.

    Raises:
        UserError: there is none.
    """
    try:
        return Encoding(setting)
    except ValueError as error:
        raise UserError(
            f"scorer remote: encoding is `{setting}`; set options.encoding to one of {', '.join(Encoding)}"
        ) from error


class RemoteGroupwise(Remote):
    """As `Remote`, for a scorer that compares the images of a group."""

    groupwise = True


def wait_for_pool(url: str, timeout_s: float) -> None:
    """Wait until all scorers of the pool are running.

    Raises:
        UserError: they were not running in time, or no pool answers at the address.
    """
    client = ScoreClient(url, timeout_s=PROBE_TIMEOUT_S, attempts=1)
    try:
        ask_outside(client.ready, timeout_s)
    except PoolError as error:
        raise UserError(f"the pool is not ready: {error}; start it, or raise ray.start_timeout_s") from error
