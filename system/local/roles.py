"""The roles in one process, without Ray: for a debugger, a laptop, and a machine without Ray.

Every call does its work before it returns, in the caller's thread: a future that a role returns is resolved already.
A run gives the same weights bit for bit as on Ray, because each role computes with its own number of CPU threads and
because nothing depends on how many workers or replicas there are.

Differences from the roles on Ray: there is one generator, whatever `rollout.workers` says, and one replica of each
scorer. A scorer's failed request is not sent again. If any role asks for a GPU, every role sees it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from actors.learner.learner import Learner
from actors.learner.stats import UpdateStats
from actors.policy.families.family import Parts
from actors.policy.policy import Policy
from actors.policy.weights import Exported, Label, Weights
from actors.reward.scores import Scores
from actors.rollout.images import ByteBudget, Images
from actors.rollout.plans.plan import Plan
from actors.rollout.results import Generated, RolloutStatus, Sampled
from actors.rollout.sampling import Sampling
from actors.rollout.worker import Generator, SharedGenerator
from actors.trajectory import Task
from services.base.devices import gpu_failure, prepare_torch
from services.base.errors import UserError, first_line
from services.base.futures import resolved
from services.base.logs import at
from services.base.storage import Folder
from services.scoring.loaded import LoadedScorer
from services.scoring.row import Row
from services.scoring.scorer import images_at_once
from services.scoring.settings import ScorerSettings
from system.capacity.in_flight import bytes_in_flight
from system.recipe.model import RunConfig

log = logging.getLogger(__name__)

T = TypeVar("T")


class LocalRoles:
    """The live roles of one run in this process (`system.loop.roles.Roles`). The recipe has one rank.

    Args:
        trainable: the sampling steps that the plan may train.
        check_stop: called before each job; raises when the run is to end.
        learns: whether there is a learner; False for evaluation alone.
    """

    def __init__(
        self, config: RunConfig, trainable: list[int], check_stop: Callable[[], None], learns: bool = True
    ) -> None:
        gpus = [config.rollout.num_gpus, config.learner.num_gpus, *(scorer.num_gpus for scorer in config.scorers)]
        prepare_torch(config.rollout.threads, max(gpus), config.deterministic)
        self.rollouts = LocalRollouts(config, check_stop)
        self.rewards = LocalRewards(config.scorers)
        self.learners: LocalLearners
        if learns:
            self.learners = LocalLearners(config, trainable, self.rollouts)
        else:
            self.rollouts.take(Policy(config.policy, config.seed))  # keeps the base, to evaluate it


class LocalRollouts:
    """Rollouts (`system.loop.roles.Rollouts`) by one generator."""

    generator: Generator

    def __init__(self, config: RunConfig, check_stop: Callable[[], None]) -> None:
        self.config, self.check_stop = config, check_stop
        self.budget = ByteBudget(bytes_in_flight(config))
        self.held: Label | None = None
        """The weights that the generator holds; None for those that the model came with."""

    def take(self, policy: Policy, shared: bool = False) -> None:
        """Generate with a policy.

        Args:
            shared: whether the learner trains the same model.
        """
        kind = SharedGenerator if shared else Generator
        self.generator = kind(policy, self.config.kernel, self.config.rollout)
        self.held = None

    def generate(self, task: Task, plan: Plan, weights: Exported) -> Future[Generated]:
        def run() -> Generated:
            self._load(weights)
            with at(step=task.training_step, task=task.index):
                experience, images_MHWC, outcome = self.generator.generate(task, plan)
            images = self._images(images_MHWC)
            return Generated(task, experience, outcome.tree, images, outcome.finite_M, outcome.cost)

        return self._done(run)

    def sample(
        self,
        prompts: list[str],
        addresses: Sequence[tuple[int, ...]],
        sampling: Sampling,
        weights: Exported | None = None,
    ) -> Future[Sampled]:
        assert weights is not None or not sampling.policy_steps, "the policy has no weights for its steps"

        def run() -> Sampled:
            if weights is not None:
                self._load(weights)
            images_NHWC, finite_N = self.generator.sample(prompts, addresses, sampling)
            return Sampled(self._images(images_NHWC), finite_N)

        return self._done(run)

    def cancel(self) -> None:
        """Nothing waits."""

    def take_peak_bytes(self) -> int:
        return self.budget.take_peak()

    def status(self) -> RolloutStatus:
        return RolloutStatus(1, 0, {} if self.held is None else {0: self.held.version})

    def _done(self, run: Callable[[], T]) -> Future[T]:
        """A job, done now."""
        self.check_stop()
        torch.set_num_threads(self.config.rollout.threads)
        return resolved(run)

    def _load(self, weights: Exported) -> None:
        """Take weights, unless they are held.

        Raises:
            RuntimeError: the live parameters are not those that were exported.
        """
        label = weights.label
        if self.held == label:
            return
        arrays = {name: array for bucket in weights.buckets for name, array in bucket.items()}
        answer = self.generator.load(Weights(label.version, label.checksum, arrays))
        if answer != (label.version, label.checksum):
            raise RuntimeError(f"the generator holds weights {answer}, not {label}")
        self.held = label

    def _images(self, images_NHWC: np.ndarray) -> Images:
        num_bytes = images_NHWC.nbytes
        if not self.budget.reserve(num_bytes):
            raise RuntimeError("images of an earlier job are not released")
        return Images(images_NHWC, num_bytes, self.budget, np.copy)


class LocalRewards:
    """Rewards (`system.loop.roles.Rewards`) by one replica of each scorer."""

    def __init__(self, scorers: Sequence[ScorerSettings]) -> None:
        self.settings = {scorer.name: scorer for scorer in scorers}
        self.scorers = {name: LoadedScorer(settings) for name, settings in self.settings.items()}

    def score(
        self,
        images: np.ndarray,
        prompts: Sequence[str],
        names: Sequence[str],
        finite_M: np.ndarray,
        rows: Sequence[Row] = (),
        group: int | None = None,
    ) -> Future[Scores]:
        return resolved(lambda: self._score(images, prompts, names, finite_M, rows, group or len(prompts)))

    def _score(
        self,
        images: np.ndarray,
        prompts: Sequence[str],
        names: Sequence[str],
        finite_M: np.ndarray,
        rows: Sequence[Row],
        group: int,
    ) -> Scores:
        scores = Scores({name: np.full(len(prompts), np.nan) for name in names})
        for name in names:
            size = images_at_once(self.settings[name], group)
            torch.set_num_threads(self.settings[name].threads)
            for start in range(0, len(prompts), size):
                part = slice(start, start + size)
                began = time.monotonic()
                try:
                    scored = self.scorers[name].score(images[part], prompts[part], rows[part])
                except Exception as error:  # A scorer is anyone's code.
                    if gpu_failure(error):
                        raise  # no further call of this process can work
                    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                    scores.errors[name] = f"{kind}{first_line(error)}"
                    log.warning("scorer %s, images from number %d: %s", name, start, scores.errors[name])
                    log.info("where the scorer %s failed", name, exc_info=error)  # for the file, not for the screen
                    continue
                seconds = time.monotonic() - began
                scores.add(name, start, scored, seconds, seconds)
        return scores.without(finite_M)


class LocalLearners:
    """The learner (`system.loop.roles.Learners`) of one rank, in the process of the rollouts."""

    learner: Learner

    def __init__(self, config: RunConfig, trainable: list[int], rollouts: LocalRollouts) -> None:
        self.config, self.trainable, self.rollouts = config, trainable, rollouts
        self.restarts = 0
        self._written: dict[str, str] = {}
        self._start()

    def _start(self) -> None:
        """The models as they are before any training: one that both roles use, or one for each."""
        config, shared = self.config, self.config.placement == "colocated"
        parts: Parts = "all" if shared else "transformer"
        policy = Policy(config.policy, config.seed, parts, keeps_base=config.objective.compares_with_reference)
        self.learner = Learner(policy, config.kernel, config.objective, config.learner, self.trainable)
        self.rollouts.take(policy if shared else Policy(config.policy, config.seed, keeps_base=False), shared)

    def describe(self) -> dict[str, list[float]]:
        return self.learner.describe()

    def update(self, experience: Sequence[Any], advantages: Sequence[np.ndarray], behaviour: int) -> UpdateStats:
        torch.set_num_threads(self.config.learner.threads)
        return self.learner.update(list(zip(experience, advantages, strict=True)), behaviour)

    def export(self, version: int) -> Exported:
        return _exported(self.learner.export(version))

    def evaluated(self) -> Exported:
        return _exported(self.learner.evaluated())

    def save(self, folder: Folder) -> None:
        self._written = {name: folder.write(name, content) for name, content in self.learner.files().items()}

    def saved(self, wait: bool) -> dict[str, str]:
        return self._written

    def restore(self, folder: Folder, version: int) -> None:
        self.learner.restore(folder, version)

    def save_model(self, folder: str) -> None:
        self.learner.save_model(Path(folder))

    def restart(self) -> None:
        self.restarts += 1
        self._start()


def _exported(weights: Weights) -> Exported:
    return Exported((weights.arrays,), weights.label)
