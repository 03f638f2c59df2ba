"""A scorer of another pool, over HTTP: that of another cluster, or anything that speaks our API."""

from collections.abc import Sequence

import numpy as np

from services.client import PoolAway, PoolError, ScoreClient
from services.errors import UserError
from services.http import read_token
from services.patience import patiently

ANSWER_TIMEOUT_S = 10
"""Of the question whether a pool is ready."""


class Remote:
    """Scores of a pool's scorer. A pool that is away or full is waited for.

    Args:
        url: of the pool.
        scorer: its name there.
        token_file: holds the pool's bearer token; the environment's TEMPFLOW_TOKEN if not given.
        run: label on the pool's metrics and limits.
        timeout_s: of one request, waiting for the pool included.
    """

    def __init__(
        self, url: str, scorer: str, token_file: str | None = None, run: str = "", timeout_s: float = 600
    ) -> None:
        self.scorer, self.timeout_s = scorer, timeout_s
        self.client = ScoreClient(url, read_token(token_file), run, timeout_s, attempts=1)

    @staticmethod
    def check(url: str, scorer: str, token_file: str | None = None, **_: object) -> None:
        """Refuse an address that is none, and a token that is not there.

        Raises:
            UserError: names it.
        """
        if not url.startswith(("http://", "https://")):
            raise UserError(f"scorer remote: url is `{url}`; give the pool's http:// or https:// address")
        read_token(token_file)

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        answer = patiently(lambda: self.client.score(images_NHWC, prompts, [self.scorer]), PoolAway, self.timeout_s)
        return answer.scores[self.scorer]


def wait_for_pool(url: str, timeout_s: float) -> None:
    """Until the pool's scorers are there.

    Raises:
        UserError: they did not come, or no pool is at the address.
    """
    client = ScoreClient(url, timeout_s=ANSWER_TIMEOUT_S, attempts=1)
    try:
        patiently(client.ready, PoolAway, timeout_s)
    except PoolError as error:
        raise UserError(f"the pool is not ready: {error}; start it, or raise ray.start_timeout_s") from error
