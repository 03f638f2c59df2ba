"""The scoring service as a Serve application: one deployment a scorer, and a gateway that names them."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from services.logs import log_to
from services.scoring.scorer import BUILT_IN, load_scorer
from services.scoring.settings import ScorerSettings

log = logging.getLogger(__name__)


@serve.deployment
class ScorerDeployment:
    """One scorer on its replicas. Batches have a fixed shape inside the scorer, so replicas give equal bits."""

    def __init__(self, settings: ScorerSettings, log_file: str | None = None) -> None:
        log_to(log_file)
        import torch

        torch.set_num_threads(settings.threads)
        started = time.perf_counter()
        self.name = settings.name
        self.scorer = load_scorer(settings)
        log.info("scorer %s ready in %.1f s", settings.name, time.perf_counter() - started)

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> tuple[np.ndarray, float]:
        """Scores (N,) float64 with NaN (also for ±infinity) as holes, and the seconds they took.

        Raises:
            ValueError: the scorer returned another number of scores than it was given images.
        """
        started = time.perf_counter()
        score_N = np.asarray(self.scorer(images_NHWC, prompts), np.float64)
        if score_N.shape != (len(prompts),):
            raise ValueError(f"scorer {self.name} returned {score_N.shape} scores for {len(prompts)} images")
        return np.where(np.isfinite(score_N), score_N, np.nan), time.perf_counter() - started


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Gateway:
    """The application's entrance: holds a handle of every scorer."""

    def __init__(self, **scorers: DeploymentHandle) -> None:
        self.scorers = scorers

    def names(self) -> list[str]:
        return sorted(self.scorers)


def deployment_name(scorer: str) -> str:
    return f"scorer-{scorer}"


def _actor_options(scorer: ScorerSettings) -> dict[str, Any]:
    """Resources of a replica, and for a user's own scorer the driver's search path: a replica is a child of Serve's
    controller, which an earlier job may have started from elsewhere.
    """
    options: dict[str, Any] = {"num_cpus": scorer.num_cpus, "num_gpus": scorer.num_gpus}
    if scorer.scorer not in BUILT_IN:
        search_path = [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(part for part in search_path if part)}}
    return options


def build_app(scorers: Sequence[ScorerSettings], log_folder: str | None = None) -> serve.Application:
    """The Serve application that scores with all of `scorers`."""
    bound = {
        scorer.name: ScorerDeployment.options(  # type: ignore[attr-defined]
            name=deployment_name(scorer.name),
            num_replicas=scorer.replicas,
            ray_actor_options=_actor_options(scorer),
            max_ongoing_requests=4,
        ).bind(scorer, f"{log_folder}/scorer-{scorer.name}.log" if log_folder else None)
        for scorer in scorers
    }
    return Gateway.bind(**bound)  # type: ignore[attr-defined]
