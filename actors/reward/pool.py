"""The reward pool as the training loop sees it: images in, scores by scorer out, failures as holes."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from services.scoring.settings import ScorerSettings

log = logging.getLogger(__name__)

BACKOFF_S = 0.5


@dataclass
class Scores:
    """What the pool gave for the M images of one task."""

    by_scorer: dict[str, np.ndarray] = field(default_factory=dict)
    """(M,) float64 each; NaN is a hole."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds a replica worked on it."""
    errors: dict[str, str] = field(default_factory=dict)
    """Why a scorer gave no score at all."""
    retries: int = 0

    def combined(self, weights: dict[str, float]) -> np.ndarray:
        """Weighted sum of the raw scores, (M,); a hole where any scorer with weight has one."""
        return np.sum([weight * self.by_scorer[name] for name, weight in weights.items()], axis=0)


class RewardPool:
    """Calls every scorer at once through its Serve handle; safe to use from several threads.

    Args:
        handles: by scorer name; anything with `score.remote(images, prompts)`.
        scorers: timeouts and attempts of each.
    """

    def __init__(self, handles: dict[str, DeploymentHandle], scorers: Sequence[ScorerSettings]) -> None:
        self.handles = handles
        self.scorers = {scorer.name: scorer for scorer in scorers}
        self.closed = threading.Event()

    def score(self, images: ray.ObjectRef, prompts: Sequence[str], names: Sequence[str]) -> Scores:
        """Score one task's images with the named scorers, in parallel.

        A request that fails or takes too long goes out again, to whichever replica Serve picks; a scorer that fails
        every attempt leaves holes. Never raises for a failed scorer.
        """
        scores = Scores()
        waiting = list(names)
        attempt = 0
        while waiting and not self.closed.is_set():
            attempt += 1
            responses = {name: self.handles[name].score.remote(images, list(prompts)) for name in waiting}
            failed = [name for name in waiting if not self._collect(name, responses[name], scores)]
            waiting = [name for name in failed if attempt < self.scorers[name].attempts]
            if waiting:
                scores.retries += len(waiting)
                self.closed.wait(BACKOFF_S * 2 ** (attempt - 1))
        for name in names:
            scores.by_scorer.setdefault(name, np.full(len(prompts), np.nan))
        return scores

    def _collect(self, name: str, response: DeploymentResponse, scores: Scores) -> bool:
        started = time.perf_counter()
        try:
            scores.by_scorer[name], scores.busy_s[name] = response.result(timeout_s=self.scorers[name].timeout_s)
        except (RayError, RayServeException, TimeoutError) as error:
            reason = getattr(error, "cause", None) or error
            scores.errors[name] = (
                f"{type(reason).__name__}: {str(reason).strip().splitlines()[-1] if str(reason) else ''}"
            )
            log.warning("scorer %s failed after %.1f s: %s", name, time.perf_counter() - started, scores.errors[name])
            return False
        scores.errors.pop(name, None)
        return True

    def close(self) -> None:
        """Make `score` return at once with holes."""
        self.closed.set()
