"""The rollout worker as a Ray actor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import ray

from actors.policy.settings import KernelSettings, PolicySettings
from actors.policy.weights import Arrays, Label, Weights
from actors.rollout.plans import Plan
from actors.rollout.sampling import Sampling
from actors.rollout.settings import RolloutSettings
from actors.trajectory import Decisions, Leaves, Outcome, Task
from services.base.devices import ending_with_its_gpu, prepare_torch
from services.base.gauges import LastingGauges, gpu_memory
from services.base.logs import LogFile, at, log_to

if TYPE_CHECKING:
    from actors.rollout.worker import Generator


class RolloutWorker:
    """A `Generator` in its own process."""

    generator: Generator

    def __init__(
        self,
        policy: PolicySettings,
        kernel: KernelSettings,
        settings: RolloutSettings,
        seed: int,
        log_file: LogFile,
        deterministic: bool = False,
        keeps_base: bool = False,
    ) -> None:
        log_to(log_file)
        prepare_torch(settings.threads, settings.num_gpus, deterministic)
        from actors.policy.policy import Policy
        from actors.rollout.worker import Generator

        self.generator = Generator(Policy(policy, seed, keeps_base=keeps_base), kernel, settings)
        LastingGauges(gpu_memory(log_file.role, log_file.run))

    def ready(self) -> str:
        """Wait until the model is loaded. Returns the id of the node."""
        return ray.get_runtime_context().get_node_id()

    @ending_with_its_gpu()
    def load(self, label: Label, *buckets: Arrays) -> tuple[int, str]:
        """Load a policy version. Returns the version and the checksum of the loaded parameters."""
        arrays = {name: array for bucket in buckets for name, array in bucket.items()}
        return self.generator.load(Weights(label.version, label.checksum, arrays))

    @ending_with_its_gpu()
    @ray.method(num_returns=3)
    def generate(self, task: Task, plan: Plan) -> tuple[Decisions | Leaves, np.ndarray, Outcome]:
        """Run a task.

        Returns:
            The training data for the learner, the images for the reward pool, and the outcome for the driver.
        """
        with at(step=task.training_step, task=task.index):
            return self.generator.generate(task, plan)

    @ending_with_its_gpu()
    @ray.method(num_returns=2)
    def sample(
        self, prompts: list[str], addresses: Sequence[tuple[int, ...]], sampling: Sampling
    ) -> tuple[np.ndarray, np.ndarray]:
        """Generate deterministic images: the images for the reward pool, and for the driver whether each is finite."""
        return self.generator.sample(prompts, addresses, sampling)
