"""The reward pool as the training loop sees it: images in, scores by scorer out, failures as holes."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from services.base.errors import cause_of
from services.scoring.settings import ScorerSettings

log = logging.getLogger(__name__)

BACKOFF_S = 0.5


@dataclass
class Scores:
    """What the pool gave for the M images of one task."""

    by_scorer: dict[str, np.ndarray] = field(default_factory=dict)
    """(M,) float64 each; NaN is a hole."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds that replicas worked on it."""
    latency_s: dict[str, list[float]] = field(default_factory=dict)
    """Of each request that was answered, from its last sending on: waiting and work."""
    errors: dict[str, str] = field(default_factory=dict)
    """Why a scorer left requests without an answer."""
    not_finite: int = 0
    """Images that have no score because the model made NaN or infinity of them."""
    retries: int = 0

    def combined(self, weights: dict[str, float]) -> np.ndarray:
        """Weighted sum of the raw scores, (M,); a hole where any scorer with weight has one."""
        return np.sum([weight * self.by_scorer[name] for name, weight in weights.items()], axis=0)


def why_holes(scores: Sequence[Scores]) -> str:
    """The reasons for the holes in the scores of several tasks."""
    reasons = {f"scorer `{name}`": reason for score in scores for name, reason in score.errors.items()}
    if not_finite := sum(score.not_finite for score in scores):
        reasons = {f"{not_finite} images": "the model's latents or pixels are NaN or infinite"} | reasons
    return "; ".join(f"{what}: {reason}" for what, reason in reasons.items()) or "the scorers returned NaN"


@dataclass
class Request:
    """Some images of a task for one scorer."""

    scorer: ScorerSettings
    start: int
    prompts: list[str]
    deadline: float
    sent: float = 0.0
    failures: int = 0
    reason: str = ""
    """Of its last failure."""


class RewardPool:
    """Calls every scorer at once through its Serve handle; safe to use from several threads.

    Args:
        handles: by scorer name; anything with `score.remote(images, prompts, start, run)`.
        scorers: timeouts, attempts and request sizes of each.
        run: label of this run on the pool's metrics.
    """

    def __init__(self, handles: dict[str, DeploymentHandle], scorers: Sequence[ScorerSettings], run: str = "") -> None:
        self.handles = handles
        self.scorers = {scorer.name: scorer for scorer in scorers}
        self.run = run
        self.closed = threading.Event()

    def score(
        self, images: ray.ObjectRef, prompts: Sequence[str], names: Sequence[str], finite_M: np.ndarray
    ) -> Scores:
        """Score one task's images with the named scorers, in parallel.

        A request that fails or takes too long goes out again, to whichever replica Serve picks; one that fails every
        attempt leaves holes. One that finds the pool's queues full waits for its turn, for at most its timeout, which
        is no failure. Never raises for a failed scorer.

        Args:
            finite_M: whether each image is finite; the others are holes, whatever a scorer makes of their black pixels.

        Raises:
            ObjectLostError: the images are gone with the node that held them.
        """
        scores = Scores({name: np.full(len(prompts), np.nan) for name in names})
        waiting = [request for name in names for request in self._requests(self.scorers[name], list(prompts))]
        attempt = 0
        while waiting and not self.closed.is_set():
            responses = [self._send(images, request) for request in waiting]
            failed = [r for r, s in zip(waiting, responses, strict=True) if not self._collect(r, s, scores)]
            waiting = [request for request in failed if request.failures < request.scorer.attempts]
            scores.errors |= {r.scorer.name: r.reason for r in failed if r.failures >= r.scorer.attempts}
            scores.retries += len(waiting)
            if waiting:
                self.closed.wait(BACKOFF_S * 2 ** min(attempt, 4))
            attempt += 1
        scores.not_finite = int((~finite_M).sum())
        for score_M in scores.by_scorer.values():
            score_M[~finite_M] = np.nan
        return scores

    def _requests(self, scorer: ScorerSettings, prompts: list[str]) -> list[Request]:
        deadline, size = time.monotonic() + scorer.timeout_s, scorer.request_images
        return [
            Request(scorer, start, prompts[start : start + size], deadline) for start in range(0, len(prompts), size)
        ]

    def _send(self, images: ray.ObjectRef, request: Request) -> DeploymentResponse:
        handle = self.handles[request.scorer.name]
        request.sent = time.monotonic()
        return handle.score.remote(images, request.prompts, request.start, self.run)

    def _collect(self, request: Request, response: DeploymentResponse, scores: Scores) -> bool:
        """Whether the request has its scores; if not, it counts a failure, unless the pool was merely full."""
        scorer = request.scorer
        try:
            score_N, busy_s = response.result(timeout_s=scorer.timeout_s)
        except BackPressureError as error:
            if time.monotonic() > request.deadline:
                request.failures = scorer.attempts
            reason: BaseException = error
        except (RayError, RayServeException, TimeoutError) as error:
            request.failures += 1
            reason = cause_of(error)
            if isinstance(reason, ObjectLostError):
                raise reason from error
        else:
            scores.by_scorer[scorer.name][request.start : request.start + len(score_N)] = score_N
            scores.busy_s[scorer.name] = scores.busy_s.get(scorer.name, 0) + busy_s
            scores.latency_s.setdefault(scorer.name, []).append(time.monotonic() - request.sent)
            return True
        said = str(reason).strip().splitlines()
        request.reason = f"{type(reason).__name__}: {said[-1] if said else ''}"
        log.warning("scorer %s, images %d and on: %s", scorer.name, request.start, request.reason)
        return False

    def close(self) -> None:
        """Make `score` return at once with holes."""
        self.closed.set()
