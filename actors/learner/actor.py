"""The learner as a Ray actor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors.learner.settings import LearnerSettings, ObjectiveSettings
from actors.learner.stats import UpdateStats
from actors.policy.settings import KernelSettings, PolicySettings
from actors.policy.weights import Weights
from actors.trajectory import Decisions, Samples
from services.logs import log_to

if TYPE_CHECKING:
    from actors.learner.learner import Learner


class LearnerWorker:
    """A `Learner` in a process of its own. Never retried by Ray: a restarted learner would answer with version 0."""

    learner: Learner

    def __init__(
        self,
        policy: PolicySettings,
        kernel: KernelSettings,
        objective: ObjectiveSettings,
        settings: LearnerSettings,
        trainable: list[int],
        seed: int,
        log_file: str,
    ) -> None:
        log_to(log_file)
        import torch

        from actors.learner.learner import Learner
        from actors.policy.policy import Policy

        torch.set_num_threads(settings.threads)
        self.learner = Learner(Policy(policy, seed, "transformer"), kernel, objective, settings, trainable)

    def describe(self) -> dict[str, list[float]]:
        """The noise level (s_i) of each sampling step, and its loss weight (w_i) where the objective has one."""
        described = {"noise_level": self.learner.kernel.std_T.tolist()}
        if self.learner.objective.weight_T is not None:
            described["weight"] = self.learner.objective.weight_T.tolist()
        return described

    def update(self, advantages: list[np.ndarray], *experience: Decisions | Samples) -> UpdateStats:
        """One training step on all tasks, in index order."""
        return self.learner.update(list(zip(experience, advantages, strict=True)))

    def export(self, version: int) -> Weights:
        """The weights of `version`.

        Raises:
            RuntimeError: this learner holds another version.
        """
        if version != self.learner.version:
            raise RuntimeError(f"asked for policy version {version}, holding {self.learner.version}")
        return self.learner.export()

    def evaluated(self) -> Weights:
        return self.learner.evaluated()

    def save(self, folder: str) -> None:
        self.learner.save(Path(folder))

    def restore(self, folder: str, version: int) -> None:
        self.learner.restore(Path(folder), version)

    def save_model(self, folder: str) -> None:
        """Write the evaluated weights in diffusers' layout."""
        self.learner.policy.save(Path(folder), self.learner.evaluated().arrays)
