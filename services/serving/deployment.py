"""The Serve deployment of one scorer."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.util import metrics

from services.base.devices import ending_with_its_gpu, preparing_scorer
from services.base.gauges import LastingGauges, Reading, gpu_memory
from services.base.logs import LogFile, log_to
from services.scoring.loaded import LoadedScorer, Scored
from services.scoring.row import Row
from services.scoring.scorer import make_importable
from services.scoring.settings import ScorerSettings

log = logging.getLogger(__name__)

SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]
IMAGES = [1, 4, 16, 64, 256]


@dataclass
class ScoreRequest:
    """Images of one caller. A replica may score them together with those of others."""

    images_NHWC: np.ndarray
    prompts: list[str]
    rows: list[Row]
    """One for each prompt; empty if the caller sends none."""

    def __len__(self) -> int:
        return len(self.prompts)


@serve.deployment
class ScorerDeployment:
    """Scores requests. Requests that wait at the same time are scored together.

    A scorer's batches have a fixed shape, so a score depends neither on the replica nor on the other requests.
    """

    def __init__(
        self,
        settings: ScorerSettings,
        log_file: LogFile | None = None,
        deterministic: bool = False,
        folders: Sequence[str] = (),
        beside: Sequence[DeploymentHandle] = (),
    ) -> None:
        """Load the scorer. It may be a module in one of `folders`.

        Serve deploys what an application's entry is given: `beside` are the other scorers, if this one is the entry.

        The folders are needed because a replica is a child of Serve's controller, which an earlier job may have started
        in another folder.
        """
        if log_file:
            log_to(log_file)
        started = time.perf_counter()
        self.name = settings.name
        self.tags = {"application": serve.get_replica_context().app_name, "scorer": settings.name}
        make_importable(*folders)
        with preparing_scorer(settings.threads, settings.num_gpus, deterministic):
            self.scorer = LoadedScorer(settings)
        self.thread = ThreadPoolExecutor(1, "score")
        self._batched.set_max_batch_size(settings.request_images)
        self._measure(settings, time.perf_counter() - started)

    def _measure(self, settings: ScorerSettings, loaded_s: float) -> None:
        own, by_run = tuple(self.tags), (*self.tags, "run")
        self.images = metrics.Counter("tempflow_scorer_images_total", "Images scored.", by_run)
        self.holes = metrics.Counter("tempflow_scorer_holes_total", "Images without a finite score.", by_run)
        self.failures = metrics.Counter("tempflow_scorer_failures_total", "Requests that raised an error.", by_run)
        self.seconds = metrics.Histogram(
            "tempflow_scorer_request_seconds", "Seconds of a request and its wait.", SECONDS, by_run
        )
        self.batch = metrics.Histogram("tempflow_scorer_batch_images", "Images scored together.", IMAGES, own)
        self.busy = metrics.Counter("tempflow_scorer_busy_seconds_total", "Seconds of scoring.", own)
        self.inside = 0
        inside = metrics.Gauge("tempflow_scorer_requests", "Requests in the replica.", own)
        load = metrics.Gauge("tempflow_scorer_load_seconds", "Seconds until the model was loaded.", own)
        wanted = metrics.Gauge("tempflow_scorer_replicas_min", "The smallest number of replicas.", own)
        memory, tags, least = gpu_memory("reward"), self.tags, settings.replicas.min

        def read() -> list[Reading]:
            return [(inside, self.inside, tags), (load, loaded_s, tags), (wanted, least, tags), *memory()]

        LastingGauges(read)
        log.info("scorer %s ready in %.1f s", self.name, loaded_s)

    async def score(
        self,
        images_NHWC: np.ndarray,
        prompts: Sequence[str],
        start: int = 0,
        run: str = "",
        rows: Sequence[Row] = (),
    ) -> tuple[Scored, float]:
        """Score the images from `start` up to `start + len(prompts)` of an array.

        Args:
            rows: one for each prompt, or none.

        Returns:
            The scores, and the seconds of work for this request.

        Raises:
            ValueError: the request has more images than `request_images`, or the number of scores differs from theirs.
        """
        tags, started = {**self.tags, "run": run}, time.perf_counter()
        if len(prompts) > (most := self.scorer.settings.request_images):
            self.failures.inc(1, tags)
            raise ValueError(
                f"a request has {len(prompts)} images; the pool's setting request_images of this scorer allows {most}"
            )
        self.inside += 1
        try:
            images = images_NHWC[start : start + len(prompts)]
            outcome = await self._batched(ScoreRequest(images, list(prompts), list(rows)))
        finally:
            self.inside -= 1
        self.seconds.observe(time.perf_counter() - started, tags)
        if isinstance(outcome, Exception):
            self.failures.inc(1, tags)
            raise outcome
        scored, seconds = outcome
        self.images.inc(len(prompts), tags)
        if holes := int(np.isnan(scored.score_N).sum()):
            self.holes.inc(holes, tags)
        return scored, seconds

    @serve.batch(
        batch_wait_timeout_s=0.002,
        batch_size_fn=lambda requests: sum(len(r) for r in requests),
        max_concurrent_batches=2,
    )
    async def _batched(self, requests: list[ScoreRequest]) -> list[tuple[Scored, float] | Exception]:
        """Score requests that came at the same time. One batch is scored; the next one waits in the scoring thread.

        Otherwise the thread would be idle between two batches, until Serve's event loop has its turn.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.thread, self._score_together, requests)

    def _score_together(self, requests: list[ScoreRequest]) -> list[tuple[Scored, float] | Exception]:
        """Score requests of one image size in one call. If it raises, score each alone, so that only bad ones fail.

        A groupwise scorer gets each request alone, which is one group.
        """
        together = defaultdict(list)
        for i, request in enumerate(requests):
            together[i if self.scorer.needs.groupwise else request.images_NHWC.shape[1:]].append(i)
        outcomes: dict[int, tuple[Scored, float] | Exception] = {}
        for places in together.values():
            try:
                outcomes |= dict(zip(places, self._score([requests[i] for i in places]), strict=True))
            except Exception as error:  # a scorer may be the user's code
                log.exception("scorer %s failed", self.name)
                alone = len(places) == 1
                outcomes |= {places[0]: error} if alone else {i: self._score_alone(requests[i]) for i in places}
        return [outcomes[i] for i in range(len(requests))]

    def _score_alone(self, request: ScoreRequest) -> tuple[Scored, float] | Exception:
        try:
            return self._score([request])[0]
        except Exception as error:  # as above
            return error

    def _score(self, requests: list[ScoreRequest]) -> list[tuple[Scored, float]]:
        started = time.perf_counter()
        images = requests[0].images_NHWC if len(requests) == 1 else np.concatenate([r.images_NHWC for r in requests])
        prompts = [prompt for request in requests for prompt in request.prompts]
        rows = [row for request in requests for row in request.rows or [{}] * len(request)]
        try:
            with ending_with_its_gpu():
                scored = self.scorer.score(images, prompts, rows)
        finally:
            worked_s = time.perf_counter() - started
            self.busy.inc(worked_s, self.tags)
        self.batch.observe(len(prompts), self.tags)
        seconds = worked_s / max(len(prompts), 1)
        ends = np.cumsum([len(request) for request in requests]).tolist()
        parts = [scored[end - len(request) : end] for end, request in zip(ends, requests, strict=True)]
        return [(part, seconds * len(part)) for part in parts]
