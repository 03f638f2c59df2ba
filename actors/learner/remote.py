"""The learner on Ray: one or several ranks. If one is lost, all of them start again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from actors.learner.settings import LearnerSettings
from actors.learner.stats import UpdateStats
from actors.lost import LearnerLate, LearnerLost, Lost
from actors.policy.weights import Exported
from services.base.errors import cause_of, death, first_line, refusal
from services.base.storage import Folder

log = logging.getLogger(__name__)

CONTROL_TIMEOUT_S = 600
"""The timeout of small requests."""
POLL_S = 0.1
"""Seconds between two checks of whether a checkpoint is written."""
GRACE_S = 10
"""Seconds to wait, after a rank's collective has failed, for the news that another rank has died."""


class RemoteLearner:
    """The ranks of one learner. Every rank answers every request, and the answer of the first rank is used.

    Requests are never sent again: an optimizer step is applied once, by all ranks. If a rank fails, all of them
    start again.

    Args:
        start_rank: makes the actor of a rank.
        start_timeout_s: how long new ranks may take to load the model and to meet.
        restarted: called with the new ranks after each restart.
    """

    def __init__(
        self,
        start_rank: Callable[[int], ActorHandle],
        settings: LearnerSettings,
        start_timeout_s: float,
        restarted: Callable[[list[ActorHandle]], None] = lambda ranks: None,
    ) -> None:
        self.start_rank, self.settings = start_rank, settings
        self.start_timeout_s, self.restarted = start_timeout_s, restarted
        self.workers = [start_rank(rank) for rank in range(settings.ranks)]
        self.restarts = 0

    def join(self, timeout_s: float) -> None:
        """Wait until every rank has loaded its model and met the others."""
        if len(self.workers) > 1:
            endpoint = self._answers([self.workers[0].rendezvous.remote()], timeout_s)[0]
            self._ask("join", endpoint, timeout_s=timeout_s)
        self.num_buckets = self._ask("num_buckets", timeout_s=timeout_s)

    def restart(self) -> None:
        """Replace all ranks by new ones, which have the initial weights until `restore`."""
        self.restarts += 1
        self.close()
        self.workers = [self.start_rank(rank) for rank in range(len(self.workers))]
        self.join(self.start_timeout_s)
        self.restarted(self.workers)

    def describe(self) -> dict[str, list[float]]:
        """The noise level (s_i) of each sampling step, and its loss weight (w_i) where the objective has one."""
        return self._ask("describe")

    def update(
        self, experience: Sequence[ray.ObjectRef], advantages: Sequence[np.ndarray], behaviour: int
    ) -> UpdateStats:
        """One training step on all tasks, in the order of their index. Policy version `behaviour` generated them.

        The tasks of each optimizer step are dealt out to the ranks in turn, so their numbers differ by one at most.
        """
        answers = [
            worker.update.remote(
                advantages,
                behaviour,
                *[task if i % len(self.workers) == rank else None for i, task in enumerate(experience)],
            )
            for rank, worker in enumerate(self.workers)
        ]
        return self._answers(answers, self.settings.update_timeout_s)[0]

    def export(self, version: int) -> Exported:
        """The weights of `version`, which outlive the learner's processes."""
        return self._export("export", version)

    def evaluated(self) -> Exported:
        """The weights that evaluation and the saved model use. They outlive the learner's processes, too."""
        return self._export("evaluated")

    def save(self, folder: Folder) -> None:
        """Begin to write a checkpoint's files. `update` may be called meanwhile."""
        self._ask("save", folder)

    def saved(self, wait: bool) -> dict[str, str] | None:
        """The SHA-256 of each file of the checkpoint that was begun last, once all files are written.

        Returns:
            None if they are not written yet and `wait` is False.

        Raises:
            OSError: the storage failed.
            LearnerLate: it takes longer than an update may.
        """
        deadline = time.monotonic() + self.settings.update_timeout_s
        while None in (
            of_ranks := self._answers([worker.saved.remote() for worker in self.workers], CONTROL_TIMEOUT_S)
        ):
            if not wait:
                return None
            if time.monotonic() > deadline:
                raise LearnerLate(f"a checkpoint is not written within {self.settings.update_timeout_s:g} s")
            time.sleep(POLL_S)
        return {name: digest for of_rank in of_ranks for name, digest in of_rank.items()}

    def restore(self, folder: Folder, version: int) -> None:
        self._ask("restore", folder, version, timeout_s=self.settings.update_timeout_s)

    def save_model(self, folder: str) -> None:
        """Write the evaluated weights in diffusers' layout."""
        self._ask("save_model", folder)

    def close(self) -> None:
        for worker in self.workers:
            ray.kill(worker)

    def _export(self, method: str, *arguments: Any) -> Exported:
        count = self.num_buckets + 1
        returns = [getattr(worker, method).options(num_returns=count).remote(*arguments) for worker in self.workers]
        label = self._answers([label for *_, label in returns], CONTROL_TIMEOUT_S)[0]
        return Exported(tuple(returns[0][:-1]), label)

    def _ask(self, method: str, *arguments: Any, timeout_s: float = CONTROL_TIMEOUT_S) -> Any:
        return self._answers([getattr(worker, method).remote(*arguments) for worker in self.workers], timeout_s)[0]

    def _answers(self, refs: list[ray.ObjectRef], timeout_s: float) -> list[Any]:
        """The answers of all ranks. The first failure ends the wait, because others may wait for the failed one.

        Raises:
            UserError: a rank refuses, in a request or as it starts.
            LearnerLost: a rank is dead.
            LearnerLate: a rank has not answered in time.
            Lost: weights or experience are lost with the node that held them.
        """
        deadline = time.monotonic() + timeout_s
        waiting = refs
        while waiting:
            done, waiting = ray.wait(waiting, timeout=max(0, deadline - time.monotonic()))
            if not done:
                raise LearnerLate(f"the learner did not answer within {timeout_s:g} s")
            error = _failure(done[0])
            if isinstance(error, RayTaskError) and waiting:
                # A collective fails on those that live when another dies.
                others, _ = ray.wait(waiting, num_returns=len(waiting), timeout=GRACE_S)
                error = next((other for other in map(_failure, others) if isinstance(other, RayActorError)), error)
            if error is not None and (said := refusal(error)):
                raise said from error
            if isinstance(error, RayActorError):
                raise LearnerLost(death(error)) from error
            if error is not None and isinstance(cause_of(error), ObjectLostError):
                raise Lost(first_line(error)) from error
            if error is not None:
                raise error
        return ray.get(refs, timeout=CONTROL_TIMEOUT_S)


def _failure(answer: ray.ObjectRef) -> RayError | None:
    """The error in place of an answer."""
    try:
        ray.get(answer, timeout=CONTROL_TIMEOUT_S)
    except RayError as error:
        return error
    return None
