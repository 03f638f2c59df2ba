"""Rewards on Ray Serve: sends images to all scorers and collects the scores. A failure leaves holes."""

import contextvars
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from ray.exceptions import ObjectLostError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from actors.lost import Lost
from actors.reward.scores import Scores
from services.base.errors import UserError, cause_of, first_line
from services.base.futures import cancelled
from services.scoring.row import Row
from services.scoring.scorer import images_at_once
from services.scoring.settings import ScorerSettings

log = logging.getLogger(__name__)

BACKOFF_S = 0.5


@dataclass
class Chunk:
    """One request: some images of a job, for one scorer."""

    scorer: ScorerSettings
    start: int
    """The index of the chunk's first image in the job."""
    prompts: list[str]
    rows: list[Row]
    """One for each prompt, or none."""
    deadline: float
    """The time, by the monotonic clock, until which the request may wait for its turn."""
    sent: float = 0.0
    failures: int = 0
    reason: str = ""
    """Why the last request failed."""


class RewardPool:
    """Rewards on Ray Serve: calls all scorers in parallel through their handles.

    Args:
        handles: the handle of each scorer, by name: any object with `score.remote(images, prompts, start, run, rows)`.
        scorers: the settings of the scorers, for their timeouts, attempts and request sizes.
        concurrency: how many jobs are scored at the same time. Further jobs wait for their turn.
        run: the label of this run in the pool's metrics.
    """

    def __init__(
        self, handles: dict[str, DeploymentHandle], scorers: Sequence[ScorerSettings], concurrency: int, run: str = ""
    ) -> None:
        self.handles = handles
        self.scorers = {scorer.name: scorer for scorer in scorers}
        self.run = run
        self.closed = threading.Event()
        self._answered = dict.fromkeys(self.scorers, 0.0)
        """The time, by the monotonic clock, when each scorer last gave scores or raised an error."""
        self._door = threading.Lock()
        """The lock for submitting a job and for closing, so that no job is submitted to a closed pool."""
        self._threads = ThreadPoolExecutor(concurrency, "score")

    def score(
        self,
        images: Any,
        prompts: Sequence[str],
        names: Sequence[str],
        finite_M: np.ndarray,
        rows: Sequence[Row] = (),
        group: int | None = None,
    ) -> Future[Scores]:
        """Score the images of one job with the named scorers, in parallel.

        A request that fails is sent again, to a replica that Serve chooses. If every attempt fails, its images are
        holes. A request may wait as long as its scorer answers others: it fails if its scorer has answered nothing for
        `timeout_s`. So all requests to a scorer that hangs fail at the same time. If the pool's queues are full, the
        request waits for its turn for at most its timeout, and this does not count as a failure. A failing scorer does
        not make the future fail. A groupwise scorer gets the images of a group in one request, also when it is sent
        again.

        Args:
            images: a reference to (M, H, W, 3) uint8.
            finite_M: whether each image is finite. The others are holes, whatever a scorer returns for them.
            rows: one for each prompt, or none if no scorer reads them.
            group: images of a group, which are next to each other; without it, all images are one group.

        Returns:
            A future of the scores. It raises Lost if the images are lost together with their node. It is cancelled if
            the pool is closed, or closes before the job's turn.
        """
        context = contextvars.copy_context()  # The log's place in the run, such as step and task.
        with self._door:
            if not self.closed.is_set():
                job = partial(self._score, images, list(prompts), names, finite_M, list(rows), group or len(prompts))
                return self._threads.submit(context.run, job)
        return cancelled()

    def close(self) -> None:
        """End the jobs that are being scored at once, with holes, and cancel the waiting ones."""
        with self._door:
            self.closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _score(
        self, images: Any, prompts: list[str], names: Sequence[str], finite_M: np.ndarray, rows: list[Row], group: int
    ) -> Scores:
        scores = Scores({name: np.full(len(prompts), np.nan) for name in names})
        waiting = [chunk for name in names for chunk in self._chunks(self.scorers[name], prompts, rows, group)]
        attempt = 0
        while waiting and not self.closed.is_set():
            responses = [self._send(images, chunk) for chunk in waiting]
            failed = [c for c, r in zip(waiting, responses, strict=True) if not self._receive(c, r, scores)]
            waiting = [chunk for chunk in failed if chunk.failures < chunk.scorer.attempts]
            scores.errors |= {c.scorer.name: c.reason for c in failed if c.failures >= c.scorer.attempts}
            scores.retries += len(waiting)
            if waiting:
                self.closed.wait(BACKOFF_S * 2 ** min(attempt, 4))
            attempt += 1
        return scores.without(finite_M)

    def _chunks(self, scorer: ScorerSettings, prompts: list[str], rows: list[Row], group: int) -> list[Chunk]:
        deadline, size = time.monotonic() + scorer.timeout_s, images_at_once(scorer, group)
        return [
            Chunk(scorer, start, prompts[start : start + size], rows[start : start + size], deadline)
            for start in range(0, len(prompts), size)
        ]

    def _send(self, images: Any, chunk: Chunk) -> DeploymentResponse:
        handle = self.handles[chunk.scorer.name]
        chunk.sent = time.monotonic()
        return handle.score.remote(images, chunk.prompts, chunk.start, self.run, chunk.rows)

    def _receive(self, chunk: Chunk, response: DeploymentResponse, scores: Scores) -> bool:
        """Wait for the scores of a chunk. Returns whether they came. If not, a failure counts unless the pool was full.

        Raises:
            Lost: the images are lost.
        """
        scorer = chunk.scorer
        quiet_s = time.monotonic() - max(chunk.sent, self._answered[scorer.name])
        try:
            scored, busy_s = response.result(timeout_s=max(0.0, scorer.timeout_s - quiet_s))
        except BackPressureError as error:
            if time.monotonic() > chunk.deadline:
                chunk.failures = scorer.attempts
            reason: BaseException = error
        except (RayError, RayServeException, TimeoutError) as error:
            chunk.failures += 1
            reason = cause_of(error)
            if isinstance(reason, ObjectLostError):
                raise Lost(first_line(reason)) from error
            if isinstance(error, RayTaskError):
                self._answered[scorer.name] = time.monotonic()
        else:
            self._answered[scorer.name] = time.monotonic()
            scores.add(scorer.name, chunk.start, scored, busy_s, time.monotonic() - chunk.sent)
            return True
        said = str(reason).strip().splitlines()
        kind = "" if isinstance(reason, UserError) else f"{type(reason).__name__}: "
        chunk.reason = f"{kind}{said[-1] if said else ''}"
        log.warning("scorer %s, images from number %d: %s", scorer.name, chunk.start, chunk.reason)
        return False
