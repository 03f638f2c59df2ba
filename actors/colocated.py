"""A rollout worker and a rank of the learner in one process, taking turns over one copy of the base model."""

import numpy as np

from actors.learner.actor import LearnerWorker
from actors.learner.settings import LearnerSettings, ObjectiveSettings
from actors.learner.stats import UpdateStats
from actors.policy.settings import KernelSettings, PolicySettings
from actors.rollout.actor import RolloutWorker
from actors.rollout.settings import RolloutSettings
from actors.trajectory import Decisions, Leaves
from services.base.logs import LogFile


class ColocatedWorker(RolloutWorker, LearnerWorker):
    """Both roles on one device (`SharedGenerator`). An actor answers one call at a time, so the roles take turns."""

    parts = "all"

    def __init__(
        self,
        policy: PolicySettings,
        kernel: KernelSettings,
        objective: ObjectiveSettings,
        learner: LearnerSettings,
        trainable: list[int],
        seed: int,
        log_file: LogFile,
        rank: int = 0,
        deterministic: bool = False,
        *,
        rollout: RolloutSettings,
    ) -> None:
        both = learner.model_copy(update={"num_gpus": max(rollout.num_gpus, learner.num_gpus)})
        LearnerWorker.__init__(self, policy, kernel, objective, both, trainable, seed, log_file, rank, deterministic)
        from actors.rollout.worker import SharedGenerator

        self.generator = SharedGenerator(self.policy, kernel, rollout)

    def update(
        self, advantages: list[np.ndarray], behaviour: int, *experience: Decisions | Leaves | None
    ) -> UpdateStats:
        import torch

        torch.set_num_threads(self.settings.threads)
        return super().update(advantages, behaviour, *experience)
