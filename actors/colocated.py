"""A rollout worker and a rank of the learner in one process, taking turns over one copy of the base model."""

from collections.abc import Sequence

import numpy as np
import ray

from actors.learner.actor import LearnerWorker
from actors.learner.settings import LearnerSettings, ObjectiveSettings
from actors.learner.stats import UpdateStats
from actors.policy.settings import KernelSettings, PolicySettings
from actors.policy.weights import Arrays, Label
from actors.rollout.actor import RolloutWorker
from actors.rollout.plans import Plan
from actors.rollout.settings import RolloutSettings
from actors.trajectory import Cost, Decisions, Leaves, Outcome, Task
from services.base.logs import LogFile


class ColocatedWorker(RolloutWorker, LearnerWorker):
    """Both roles on one device. An actor does one thing at a time, so the roles never meet.

    The trained parameters exist twice: the learner's, and those that were broadcast and are sampled from (a moving
    average during evaluation). They change places in the one model when the roles do, at no cost.
    """

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
        from actors.rollout.worker import Generator

        self.sampled = {name: parameter.detach().clone() for name, parameter in self.policy.parameters.items()}
        self.generator = Generator(self.policy, kernel, rollout)
        self.threads = {"rollout": rollout.threads, "learner": learner.threads}

    def load(self, label: Label, *buckets: Arrays) -> tuple[int, str]:
        with self.policy.holding(self.sampled):
            return super().load(label, *buckets)

    @ray.method(num_returns=3)
    def generate(self, task: Task, plan: Plan) -> tuple[Decisions | Leaves, np.ndarray, Outcome]:
        self._turn("rollout")
        with self.policy.holding(self.sampled):
            return super().generate(task, plan)

    @ray.method(num_returns=2)
    def sample(
        self, prompts: list[str], addresses: Sequence[tuple[int, ...]], num_steps: int, base: bool
    ) -> tuple[np.ndarray, tuple[np.ndarray, Cost]]:
        self._turn("rollout")
        with self.policy.holding(self.sampled):
            return super().sample(prompts, addresses, num_steps, base)

    def update(
        self, advantages: list[np.ndarray], behaviour: int, *experience: Decisions | Leaves | None
    ) -> UpdateStats:
        self._turn("learner")
        return super().update(advantages, behaviour, *experience)

    def _turn(self, role: str) -> None:
        """The CPU threads of a role are part of its arithmetic."""
        import torch

        torch.set_num_threads(self.threads[role])
