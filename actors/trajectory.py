"""The data that moves between the roles: tasks, decisions and leaves. NumPy only, no Torch, no Ray.

Shape legend: N trained decisions of a task, K actions of a decision, L leaves of an action, M leaves (images) of the
task, Z latent dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Address = tuple[int, ...]
"""The address of noise: (run seed, training step, prompt row, seed index), then (branch step, exploration) for each
action on the way. The same address gives the same noise in every process."""


@dataclass(frozen=True)
class Task:
    """One prompt and the address of its noise. Equal tasks give equal bytes."""

    index: int
    """The task's place in its training step. Results are reduced in this order."""
    prompt: str
    address: tuple[int, int, int]
    """(run seed, training step, prompt row), with which the addresses of all its noise begin."""
    version: int
    """The policy version that must generate it."""

    @property
    def training_step(self) -> int:
        """The training step, counted from 0."""
        return self.address[1]


@dataclass(frozen=True)
class Tree:
    """Which leaves each action of a task owns. It is small, and the driver reads it."""

    step_N: np.ndarray
    """The sampling step of each decision."""
    seed_N: np.ndarray
    """Index of the initial noise (trunk) of each decision."""
    leaf_NKL: np.ndarray
    """The leaves that each action owns: its baseline if the fork has one, then those below it. If an action owns fewer
    than L, −1 fills the rest."""
    num_leaves: int

    @classmethod
    def of_leaves(cls, count: int, num_steps: int) -> "Tree":
        """A tree in which every image is a decision of its own with one action."""
        every_M = np.arange(count)
        return cls(np.full(count, num_steps - 1), every_M, every_M.reshape(-1, 1, 1), count)

    def reduce(self, reward_M: np.ndarray, leaf: int | None = None) -> np.ndarray:
        """The reward of each action, (N, K): the mean reward of its leaves, or the reward of its leaf number `leaf`.

        NaN if a leaf is a hole or is missing.
        """
        if leaf is not None:
            leaf_NK = self.leaf_NKL[..., leaf]
            return np.where(leaf_NK >= 0, reward_M[leaf_NK], np.nan)
        owned_NKL = self.leaf_NKL >= 0
        reward_NKL = np.where(owned_NKL, reward_M[self.leaf_NKL], 0.0)
        return reward_NKL.sum(-1) / owned_NKL.sum(-1)


RewardFunction = Callable[[Tree, np.ndarray], np.ndarray]
"""Gives the reward of each action (N, K) from a task's tree and the reward of each leaf (M,); NaN marks a hole."""


def reads_baselines(function: RewardFunction) -> RewardFunction:
    """Mark a reward function that needs `plan.baselines`. An action's first leaf is then the baseline of its state."""
    function.reads_baselines = True  # type: ignore[attr-defined]
    return function


@reads_baselines
def gains(tree: Tree, reward_M: np.ndarray) -> np.ndarray:
    """The gain of each action, (N, K): R_{i+1} − R_i, the change of the reward from its state to the next state.

    R_i is the reward of the baseline of the state of step i. An action's first leaf is the baseline of its state. Its
    second leaf is the baseline of the next state or, after the last decision, the final image.
    """
    return tree.reduce(reward_M, leaf=1) - tree.reduce(reward_M, leaf=0)


@dataclass(frozen=True)
class Decisions:
    """The decisions of a task, which the learner trains on. They go to it through the object store, past the driver."""

    step_N: np.ndarray
    state_NZ: np.ndarray
    """x_i exactly as the model saw it, fp32."""
    mean_NZ: np.ndarray
    """μ, the mean of x_{i+1}, as the rollout computed it, fp32."""
    noise_NK: list[list[Address]]
    """The address of the noise ε of each action, which is x_{i+1} = μ + s_i·ε. The learner draws the noise again,
    because K actions take many more bytes than one mean."""
    log_prob_NK: np.ndarray
    """log p under the policy that sampled. It serves to measure drift and is not the old log p of the ratio."""
    weight_N: np.ndarray
    """1 / (marginal probability that the plan has the decision's step): its weight in the loss."""
    conditioning: dict[str, np.ndarray] = field(default_factory=dict)
    """Text embeddings of the one prompt, each (1, …), in the compute dtype as `actors.policy.arrays` keeps it."""


@dataclass(frozen=True)
class Leaves:
    """The finished images of a task, on which some objectives train instead of on decisions."""

    address: tuple[int, int, int]
    """The task's address, from which the learner draws its own noise."""
    latent_MZ: np.ndarray
    """x₀ of each image, fp32."""
    conditioning: dict[str, np.ndarray]
    """Text embeddings of the one prompt, each (1, …), in the compute dtype as `actors.policy.arrays` keeps it."""


@dataclass(frozen=True)
class Cost:
    """The cost of a piece of work."""

    nfe: int = 0
    """Transformer forwards of one latent; guidance counts 2."""
    padding: int = 0
    """Further forwards, of rows that only fill a micro-batch."""
    decodes: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.nfe + other.nfe,
            self.padding + other.padding,
            self.decodes + other.decodes,
            self.seconds + other.seconds,
        )


class Outcome(NamedTuple):
    """The part of a generated task that the driver reads. Experience and images stay in the object store."""

    tree: Tree
    finite_M: np.ndarray
    """Whether latent and pixels of each image are finite. If not, the image is black and must not get a score."""
    cost: Cost
