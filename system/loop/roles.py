"""The three roles as the training loop knows them, and the contract of one step.

The trainer, the collector and the evaluation know these protocols and nothing below them. `system/launch` implements
them on Ray, `system/local` in one process; a run gives the same weights bit for bit with both.

A run without staleness, checkpoints and evaluation is this loop (version n is the policy after n updates):

    weights = roles.learners.export(0)
    for step in range(steps):
        scored = []
        for task, plan in tasks_of(step):                               # 1
            generated = roles.rollouts.generate(task, plan, weights)
            scored.append(score(generated, roles.rewards))              # 2
        tasks, scores = results(scored)                                 # 3
        roles.learners.update([task.experience for task in tasks], advantages(tasks, scores), behaviour=step)  # 4
        weights = roles.learners.export(step + 1)                       # 5

1. A job names its weights. A worker loads them before the job if it does not hold them, and the job counts only once
   the worker has confirmed their version and checksum. Nobody has to wait for a broadcast to finish.
2. A task is scored as soon as it is generated, while others are still generated. Its images count against the budget
   of bytes from the start of the job until they are released. Whoever gets the images releases them: `scoring.py`, once
   they are scored or scoring has failed. Experience is not in the budget. It is dropped at the end of its step.
3. Results are taken and reduced in task order, whatever order they arrive in.
4. Every rank applies the update or none does. A request to the learner is never sent twice.
5. A version can be exported from the update that made it until `max_staleness` further updates. Exported weights
   outlive the learner's processes.

What is lost with a process or a node:
- a rollout worker: its job runs again on another worker, and gives the same bytes. The loop does not see it;
- a scorer's replica: the request is sent again; a request that fails every attempt leaves holes (NaN);
- a rank of the learner, or experience, images or weights that lay on a lost node: the role raises `Lost`. The trainer
  restarts the learner from the latest checkpoint and repeats the steps since then.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np

from actors.learner.stats import UpdateStats
from actors.policy.weights import Exported
from actors.reward.scores import Scores
from actors.rollout.plans.plan import Plan
from actors.rollout.results import Generated, RolloutStatus, Sampled
from actors.rollout.sampling import Sampling
from actors.trajectory import Task
from services.base.storage import Folder
from services.scoring.row import Row


class Rollouts(Protocol):
    """Generates trajectories and images. Jobs start in the order in which they are given.

    Every future is resolved: with a result, with an error, or as cancelled by `cancel` or when the role closes.
    """

    def generate(self, task: Task, plan: Plan, weights: Exported) -> Future[Generated]:
        """Run a task by its plan with these weights."""

    def sample(
        self,
        prompts: list[str],
        addresses: Sequence[tuple[int, ...]],
        sampling: Sampling,
        weights: Exported | None = None,
    ) -> Future[Sampled]:
        """Generate deterministic images, one for each prompt, from the noise at the addresses.

        Args:
            sampling: how the images are sampled, and which of the steps the base model takes.
            weights: the policy's weights; None if the base model takes all steps, so that any weights will do.
        """

    def cancel(self) -> None:
        """Cancel the jobs that have not started."""

    def take_peak_bytes(self) -> int:
        """The most bytes of images in flight at once since the last call."""

    def status(self) -> RolloutStatus: ...


class Rewards(Protocol):
    """Scores images."""

    def score(
        self,
        images: Any,
        prompts: Sequence[str],
        names: Sequence[str],
        finite_M: np.ndarray,
        rows: Sequence[Row] = (),
        group: int | None = None,
    ) -> Future[Scores]:
        """Score the images of one job with the named scorers. A scorer that fails leaves holes and raises nothing.

        Args:
            images: what `Images.reference` gives.
            prompts: one for each image.
            finite_M: whether each image is finite; the others become holes.
            rows: one for each prompt, or none if no scorer reads them.
            group: the number of images in a group; images of a group are next to each other. If not given, all images
                are one group. A groupwise scorer gets one group in a request.
        """


class Learners(Protocol):
    """The trained weights, their optimizer and the policy version. Its methods raise `Lost` as said above."""

    restarts: int
    """How many times the learner was restarted."""

    def describe(self) -> dict[str, list[float]]:
        """The noise level (s_i) of each sampling step, and its loss weight (w_i) where the objective has one."""

    def update(self, experience: Sequence[Any], advantages: Sequence[np.ndarray], behaviour: int) -> UpdateStats:
        """One training step: version n to n + 1.

        Args:
            experience: that of each task, in task order.
            advantages: (N, K) for each task.
            behaviour: the policy version that generated the experience.
        """

    def export(self, version: int) -> Exported:
        """The weights to sample from of a version that the learner holds."""

    def evaluated(self) -> Exported:
        """The weights that evaluation and the saved model use: the moving average where there is one."""

    def save(self, folder: Folder) -> None:
        """Begin to write a checkpoint's files, with the state as it is now; `update` may be called meanwhile."""

    def saved(self, wait: bool) -> dict[str, str] | None:
        """SHA-256 of each file of the checkpoint that was begun last, once all are written.

        Returns:
            None if they are not written yet and `wait` is False.

        Raises:
            OSError: the storage failed.
        """

    def restore(self, folder: Folder, version: int) -> None:
        """Continue from the checkpoint of a version."""

    def save_model(self, folder: str) -> None:
        """Write the evaluated weights in diffusers' layout."""

    def restart(self) -> None:
        """Restart the learner with the initial weights."""


class Roles(Protocol):
    """The live roles of one run."""

    @property
    def rollouts(self) -> Rollouts: ...

    @property
    def rewards(self) -> Rewards: ...

    @property
    def learners(self) -> Learners: ...
