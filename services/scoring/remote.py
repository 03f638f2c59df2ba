"""A scorer of another pool, over HTTP: that of another cluster, or anything that speaks our API."""

from collections.abc import Sequence

import numpy as np

from services.client import ScoreClient
from services.errors import UserError
from services.http import read_token


class Remote:
    """Scores of a pool's scorer.

    Args:
        url: of the pool.
        scorer: its name there.
        token_file: holds the pool's bearer token; the environment's TEMPFLOW_TOKEN if not given.
        run: label on the pool's metrics and limits.
        timeout_s: of one request.
    """

    def __init__(
        self, url: str, scorer: str, token_file: str | None = None, run: str = "", timeout_s: float = 600
    ) -> None:
        self.scorer = scorer
        self.client = ScoreClient(url, read_token(token_file), run, timeout_s)

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
        return self.client.score(images_NHWC, prompts, [self.scorer]).scores[self.scorer]
