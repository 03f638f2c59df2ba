"""The reward pool: each scorer's rate against a plain loop over its model, a held load over HTTP, a killed replica."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import ray
import torch
from ray import serve

from actors.reward.pool import RewardPool
from services.base.allocator import keep_freed_memory
from services.base.ports import free_port
from services.http.client import PoolError, ScoreClient
from services.scoring.loaded import LoadedScorer
from services.scoring.row import Row
from services.scoring.scorer import images_at_once
from services.scoring.settings import Replicas, ScorerSettings
from services.serving.settings import PoolSettings, deployment_name
from system.bench.measure import turns
from system.launch.environment import LOOPBACK
from system.launch.serving import running_pool
from system.loop.prompts import prompts_of, rows_for
from system.recipe.model import RunConfig

APP = "tempflow-bench-pool"
TASKS, TASK_IMAGES = 4, 96
"""Of one round: as many images as a training step of the miniature gives."""
REQUEST_IMAGES = 16
"""Of one request of the held load."""
EAGER_CALLERS, EAGER_S = 4, 8.0
"""Callers who ask again at once, to find what the pool can bear."""
HELD_SHARE, HELD_S = 0.5, 20.0
"""The held load: this share of it, for so long."""
KILL_AFTER_S = 5.0
NICENESS = "RAY_worker_niceness"
"""Ray gives its workers a low priority, 15. Here they have the priority of the plain loop: otherwise other programs
would slow the pool more than the loop. A cluster that runs already keeps its own."""
CALLERS = 64
"""Requests of the held load that may wait at once."""


@dataclass(frozen=True)
class Answered:
    """One request of a held load: when it was due, when it was answered (seconds from the start)."""

    due: float
    done: float
    scored: bool

    @property
    def latency(self) -> float:
        """From the moment it was due, so that a late caller does not hide a slow pool."""
        return self.done - self.due


def bench_pool(config: RunConfig, rounds: int) -> dict[str, Any]:
    """Figures by scorer, each on one replica; latency under a held load; what a killed replica costs."""
    keep_freed_memory()  # for the plain loop; replicas do it themselves
    one = tuple(scorer.model_copy(update={"replicas": Replicas(), "num_cpus": 0.1}) for scorer in config.scorers)
    gateway = config.serve.model_copy(update={"host": LOOPBACK, "port": free_port()})
    pool = PoolSettings(name=APP, scorers=one, serve=gateway)
    tasks = Tasks(config, one)
    plain = {scorer.name: LoadedScorer(scorer) for scorer in one}
    os.environ.setdefault(NICENESS, "0")
    figures: dict[str, Any] = {"images_a_round": TASKS * TASK_IMAGES, "held_for_s": HELD_S}
    with running_pool(pool):
        handles = {s.name: serve.get_deployment_handle(deployment_name(s.name), APP) for s in one}
        reward_pool, stored = RewardPool(handles, one, TASKS), ray.put(tasks.images_MHWC)
        for scorer in one:
            loop = OnCpu(_plain_loop(plain[scorer.name], tasks), psutil.Process())
            asked = OnCpu(_through_the_pool(reward_pool, scorer.name, stored, tasks), _replica(scorer.name))
            figures[scorer.name] = _figures(loop, asked, rounds)
            figures[scorer.name]["replica_busy"] = _busy_share(reward_pool, scorer.name, stored, tasks)
        texts, rows = tasks.mixed(REQUEST_IMAGES)
        load = Load(gateway.url, tasks.images_MHWC[:REQUEST_IMAGES], texts, rows)
        figures["as fast as it answers"] = _latencies(load.eager())
        rate = HELD_SHARE * figures["as fast as it answers"]["requests_per_s"]
        figures["held load"] = _latencies(load.hold(rate))
        victim = one[0].name
        killed = load.hold(rate, lambda: _replica(victim).kill())
        figures[f"held load, {victim} killed"] = _latencies(killed)
    return figures


class _Own(threading.local):
    """The client of the calling thread. Each thread that uses it gets one."""

    def __init__(self, url: str) -> None:
        self.client = ScoreClient(url)


class Tasks:
    """Images of noise, and prompts from the recipe: one for each task, as in training, and always another one."""

    def __init__(self, config: RunConfig, scorers: tuple[ScorerSettings, ...]) -> None:
        self.prompts, self.scorers = prompts_of(config.data, config.data.train), scorers
        shape = (TASK_IMAGES, config.policy.height, config.policy.width, 3)
        self.images_MHWC = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def siblings(self) -> Iterator[tuple[list[str], list[Row]]]:
        """The prompts and rows of one task after the other, without end."""
        for i in itertools.count():
            place = i % len(self.prompts)
            yield [self.prompts[place]] * TASK_IMAGES, rows_for(self.scorers, self.prompts, [place] * TASK_IMAGES)

    def mixed(self, images: int) -> tuple[list[str], list[Row]]:
        """Different prompts and their rows."""
        places = [i % len(self.prompts) for i in range(images)]
        return [self.prompts[place] for place in places], rows_for(self.scorers, self.prompts, places)


class OnCpu:
    """A call whose work is done in a process of this machine. Notes the CPU seconds of the process for each call.

    Other programs on a busy machine change them much less than the wall time.
    """

    def __init__(self, call: Callable[[], Any], process: psutil.Process) -> None:
        self.call, self.process = call, process
        self.seconds: list[float] = []

    def __call__(self) -> None:
        before = self.process.cpu_times()
        self.call()
        after = self.process.cpu_times()
        self.seconds.append(after.user + after.system - before.user - before.system)


def _figures(plain: OnCpu, pool: OnCpu, rounds: int) -> dict[str, float]:
    """Rates of the best round, and ratios of the plain loop and the pool by round, as they vary on a busy machine."""
    taken = turns({"plain": plain, "pool": pool}, rounds, torch.device("cpu"))
    images, ratios = TASKS * TASK_IMAGES, np.divide(taken["plain"], taken["pool"])
    return {
        "plain_images_per_s": images / min(taken["plain"]),
        "pool_images_per_s": images / min(taken["pool"]),
        "ratio_median": float(np.median(ratios)),
        "ratio_quartile_1": float(np.quantile(ratios, 0.25)),
        "ratio_quartile_3": float(np.quantile(ratios, 0.75)),
        "plain_cpu_ms_an_image": 1000 * float(np.median(plain.seconds[1:])) / images,
        "replica_cpu_ms_an_image": 1000 * float(np.median(pool.seconds[1:])) / images,
    }


class Load:
    """Callers over HTTP, each with a connection of its own, who all send the same images to every scorer."""

    def __init__(self, url: str, images_NHWC: np.ndarray, prompts: list[str], rows: list[Row]) -> None:
        self.images_NHWC, self.prompts, self.rows = images_NHWC, prompts, rows
        self.own = _Own(url)

    def eager(self) -> list[Answered]:
        """EAGER_CALLERS ask again as soon as they are answered, for EAGER_S."""
        started = time.monotonic()

        def keep_asking(_: int) -> list[Answered]:
            answers: list[Answered] = []
            while (due := time.monotonic() - started) < EAGER_S:
                answers.append(self._ask(started, due))
            return answers

        with ThreadPoolExecutor(EAGER_CALLERS) as threads:
            return [answer for answers in threads.map(keep_asking, range(EAGER_CALLERS)) for answer in answers]

    def hold(self, rate: float, disturb: Callable[[], None] | None = None) -> list[Answered]:
        """A request every 1 / `rate` seconds for HELD_S, however slowly earlier ones are answered.

        Args:
            disturb: called once, KILL_AFTER_S after the start.
        """
        started = time.monotonic()

        def ask(due: float) -> Answered:
            time.sleep(max(0.0, started + due - time.monotonic()))
            return self._ask(started, due)

        with ThreadPoolExecutor(CALLERS) as threads:
            disturbed = threads.submit(_after, KILL_AFTER_S, disturb) if disturb else None
            answers = list(threads.map(ask, np.arange(0, HELD_S, 1 / rate)))
            if disturbed:
                disturbed.result()
        return answers

    def _ask(self, started: float, due: float) -> Answered:
        try:
            answer = self.own.client.score(self.images_NHWC, self.prompts, rows=self.rows)
            scored = all(np.isfinite(score_N).all() for score_N in answer.scores.values())
        except PoolError:
            scored = False
        return Answered(due, time.monotonic() - started, scored)


def _latencies(answers: list[Answered]) -> dict[str, float]:
    taken = np.array([answer.latency for answer in answers])
    return {
        "requests_per_s": len(answers) / max(answer.done for answer in answers),
        "p50_s": float(np.quantile(taken, 0.5)),
        "p99_s": float(np.quantile(taken, 0.99)),
        "slowest_s": float(taken.max()),
        "unscored": float(sum(not answer.scored for answer in answers)),
    }


def _after(seconds: float, call: Callable[[], None]) -> None:
    time.sleep(seconds)
    call()


def _replica(scorer: str) -> psutil.Process:
    """The process of a replica; it runs on this machine."""
    name = f"ray::ServeReplica:{APP}:{deployment_name(scorer)}"
    replicas = [p for p in psutil.process_iter(["cmdline"]) if " ".join(p.info["cmdline"] or []).startswith(name)]
    return replicas[0]


def _plain_loop(scorer: LoadedScorer, work: Tasks) -> Callable[[], None]:
    size, siblings = images_at_once(scorer.settings, TASK_IMAGES), work.siblings()

    def call() -> None:
        torch.set_num_threads(scorer.settings.threads)
        for texts, rows in itertools.islice(siblings, TASKS):
            for start in range(0, TASK_IMAGES, size):
                part = slice(start, start + size)
                scorer.score(work.images_MHWC[part], texts[part], rows[part])

    return call


def _through_the_pool(pool: RewardPool, name: str, images: ray.ObjectRef, work: Tasks) -> Callable[[], float]:
    """Scores all tasks at once, as training does; gives the seconds that the replica worked."""
    siblings = work.siblings()

    def call() -> float:
        tasks = [
            pool.score(images, texts, [name], np.ones(len(texts), bool), rows)
            for texts, rows in itertools.islice(siblings, TASKS)
        ]
        scores = [task.result() for task in tasks]
        assert all(np.isfinite(score.by_scorer[name]).all() for score in scores)
        return sum(score.busy_s[name] for score in scores)

    return call


def _busy_share(pool: RewardPool, name: str, images: ray.ObjectRef, work: Tasks) -> float:
    """Share of the wall time that the replica worked; the rest is what the pool costs."""
    started = time.perf_counter()
    return _through_the_pool(pool, name, images, work)() / (time.perf_counter() - started)
