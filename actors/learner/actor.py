"""The learner as a Ray actor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import ray

from actors.learner.settings import LearnerSettings, ObjectiveSettings
from actors.learner.stats import UpdateStats
from actors.policy.settings import KernelSettings, PolicySettings
from actors.policy.weights import BUCKET_BYTES, Arrays, Label, Weights, bucketed
from actors.trajectory import Decisions, Leaves
from services.base.devices import device_of, ending_with_its_gpu, prepare_torch
from services.base.gauges import LastingGauges, gpu_memory
from services.base.logs import LogFile, log_to
from services.base.storage import Folder

if TYPE_CHECKING:
    from actors.learner.learner import Learner
    from actors.policy.families.family import Parts
    from actors.policy.policy import Policy

JOIN_TIMEOUT_S = 120


class LearnerWorker:
    """A rank of the learner: a `Learner` in a process of its own.

    Ray does not restart it, because a restarted learner would answer with version 0.
    """

    parts: ClassVar[Parts] = "transformer"
    """The parts of the model that this process needs."""
    bucket_bytes: ClassVar[int] = BUCKET_BYTES
    policy: Policy
    """Set at the start, or, if the learner is sharded, once the ranks have met."""
    learner: Learner
    """Set at the start, or, if there are several ranks, once they have met."""
    writing: Future[dict[str, str]]

    def __init__(
        self,
        policy: PolicySettings,
        kernel: KernelSettings,
        objective: ObjectiveSettings,
        settings: LearnerSettings,
        trainable: list[int],
        seed: int,
        log_file: LogFile,
        rank: int = 0,
        deterministic: bool = False,
    ) -> None:
        log_to(log_file)
        prepare_torch(settings.threads, settings.num_gpus, deterministic)
        from actors.learner.learner import Learner
        from actors.learner.ranks import Ranks
        from actors.policy.policy import Policy

        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.settings, self.ranks, self.device = settings, Ranks(rank, settings.ranks), device_of(policy.device)
        self._make_policy = partial(Policy, policy, seed, self.parts, keeps_base=objective.compares_with_reference)
        self._make_learner = partial(
            Learner, kernel=kernel, objective=objective, settings=settings, trainable=trainable, ranks=self.ranks
        )
        if not settings.shard:
            self.policy = self._make_policy()
        if settings.ranks == 1:
            self.learner = self._make_learner(self.policy)
        LastingGauges(gpu_memory(log_file.role, log_file.run))

    def rendezvous(self) -> tuple[str, int]:
        """Open the socket at which the ranks meet, on the address by which Ray knows this node."""
        from actors.learner.ranks import Rendezvous

        self.meeting = Rendezvous(ray.util.get_node_ip_address(), JOIN_TIMEOUT_S)
        return self.meeting.endpoint

    @ending_with_its_gpu()
    def join(self, endpoint: tuple[str, int]) -> None:
        """Meet the other ranks, load this rank's part of the model if it is sharded, and make the learner."""
        from actors.learner.ranks import join

        join(endpoint, self.ranks, self.device, self.settings.update_timeout_s)
        if self.settings.shard:
            self.policy = self._make_policy(ranks=self.ranks.size)
        self.learner = self._make_learner(self.policy)

    def describe(self) -> dict[str, list[float]]:
        """The noise level (s_i) of each sampling step, and its loss weight (w_i) where the objective has one."""
        return self.learner.describe()

    @ending_with_its_gpu()
    def update(
        self, advantages: list[np.ndarray], behaviour: int, *experience: Decisions | Leaves | None
    ) -> UpdateStats:
        """One training step on all tasks, in the order of their index. Policy version `behaviour` generated them. A
        task of another rank is None."""
        return self.learner.update(list(zip(experience, advantages, strict=True)), behaviour)

    def num_buckets(self) -> int:
        """The number of objects that a policy version is sent in."""
        return len(self._buckets())

    def export(self, version: int) -> Iterator[Arrays | Label]:
        """The weights of `version` to sample from, one return value for each bucket, and then their label.

        Raises:
            RuntimeError: this learner does not hold that version.
        """
        with ending_with_its_gpu():
            weights = self.learner.export(version)
        yield from self._sent(weights)

    def evaluated(self) -> Iterator[Arrays | Label]:
        with ending_with_its_gpu():
            weights = self.learner.evaluated()
        yield from self._sent(weights)

    def _sent(self, weights: Weights) -> Iterator[Arrays | Label]:
        """Buckets of weights, then their label. A bucket in the object store is removed from this process. Ranks after
        the first give empty buckets."""
        label = weights.label
        for names in self._buckets():
            yield {name: weights.arrays.pop(name) for name in names if weights.arrays}
        yield label

    def _buckets(self) -> list[list[str]]:
        size = self.policy.family.dtype.itemsize
        num_bytes = {name: parameter.numel() * size for name, parameter in self.policy.parameters.items()}
        return bucketed(num_bytes, self.bucket_bytes)

    @ending_with_its_gpu()
    def save(self, folder: Folder) -> None:
        """Begin to write this rank's files of a checkpoint, with the state as it is now."""
        self.writing = self.writer.submit(_write, folder, self.learner.files())

    def saved(self) -> dict[str, str] | None:
        """The SHA-256 of each file, once all files are written; None before that.

        Raises:
            OSError: the storage failed.
        """
        return self.writing.result() if self.writing.done() else None

    @ending_with_its_gpu()
    def restore(self, folder: Folder, version: int) -> None:
        self.learner.restore(folder, version)

    @ending_with_its_gpu()
    def save_model(self, folder: str) -> None:
        """Write the evaluated weights in diffusers' layout."""
        self.learner.save_model(Path(folder))


def _write(folder: Folder, files: dict[str, bytes]) -> dict[str, str]:
    return {name: folder.write(name, content) for name, content in files.items()}
