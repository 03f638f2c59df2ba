"""Roles that answer after a while with things of the right sizes. They import neither Torch nor the system."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import ray

from actors.learner.stats import UpdateStats
from actors.policy.weights import Arrays, Label
from actors.rollout.plans.plan import Plan
from actors.trajectory import Cost, Decisions, Outcome, Task, Tree
from services.base.storage import Folder

WEIGHTS_BYTES = 2**20


class SleepingWorker:
    """A rollout worker's answers, of the right sizes, after a while."""

    def __init__(self, seconds: float, image_shape: tuple[int, int, int]) -> None:
        self.seconds, self.image_shape = seconds, image_shape
        self.version: int | None = None

    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def load(self, label: Label, *buckets: Arrays) -> tuple[int, str]:
        self.version = label.version
        return label.version, label.checksum

    @ray.method(num_returns=3)
    def generate(self, task: Task, plan: Plan) -> tuple[Decisions, np.ndarray, Outcome]:
        if task.version != self.version:
            raise RuntimeError(f"task for policy version {task.version} on a worker that holds {self.version}")
        time.sleep(self.seconds)
        count, width = plan.decisions, plan.siblings
        step_N = np.resize(plan.trained_steps, count)
        decisions = Decisions(
            step_N, np.zeros((count, 1)), np.zeros((count, width, 1)), np.zeros((count, width)), np.ones(count)
        )
        leaf_NKL = np.arange(count * width).reshape(count, width, 1)
        tree = Tree(step_N, np.zeros(count, np.int64), leaf_NKL, count * width)
        images_MHWC = np.zeros((count * width, *self.image_shape), np.uint8)
        cost = Cost(nfe=plan.nfe, decodes=count * width, seconds=self.seconds)
        return decisions, images_MHWC, Outcome(tree, np.ones(count * width, bool), cost)


class SleepingLearner:
    """A rank of the learner, likewise."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def rendezvous(self) -> tuple[str, int]:
        return "", 0

    def join(self, endpoint: tuple[str, int]) -> None: ...

    def describe(self) -> dict[str, list[float]]:
        return {}

    def update(self, advantages: list[np.ndarray], behaviour: int, *experience: Decisions | None) -> UpdateStats:
        time.sleep(self.seconds)
        return UpdateStats(0, 0, 0, 1, 0, 0, 0, [0.0], [0.0], 0, self.seconds)

    def num_buckets(self) -> int:
        return 1

    def export(self, version: int) -> tuple[Arrays, Label]:
        return {"adapter": np.zeros(WEIGHTS_BYTES, np.uint8)}, Label(version, str(version), WEIGHTS_BYTES)

    def save(self, folder: Folder) -> None: ...

    def saved(self) -> dict[str, str]:
        return {}

    def save_model(self, folder: str) -> None: ...


class SleepingScorer:
    """A reward model, likewise: numbers that follow from the prompts.

    Args:
        seconds: for `images` images.
    """

    def __init__(self, seconds: float, images: int) -> None:
        self.seconds_each = seconds / images

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        time.sleep(self.seconds_each * len(images_NHWC))
        return np.random.default_rng(len(prompts[0])).normal(size=len(images_NHWC))
