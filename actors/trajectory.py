"""What moves between the roles: decisions, and the leaves that score them. NumPy only, no Torch, no Ray.

Shape legend: N trained decisions of a task, K actions a decision, L leaves an action owns, M leaves (images) of the
task, Z latent dimensions.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Task:
    """One prompt and the noises to generate it from; equal tasks give equal bytes."""

    index: int
    """Place in the step's order; everything is reduced in this order."""
    prompt: str
    address: tuple[int, int, int]
    """(run seed, step, prompt row), the root of the addresses of all noise."""
    version: int
    """The policy version that must generate it."""

    @property
    def step(self) -> int:
        """The training step, from 0."""
        return self.address[1]


@dataclass(frozen=True)
class Tree:
    """Who owns what in one task: small, read by the driver."""

    step_N: np.ndarray
    """Branch step of each decision."""
    seed_N: np.ndarray
    """Index of the initial noise (trunk) of each decision."""
    leaf_NKL: np.ndarray
    """Leaves that each action owns: those below it, after its baseline where the fork has one; −1 where an action owns
    fewer than L."""
    num_leaves: int

    @classmethod
    def of_leaves(cls, count: int, num_steps: int) -> "Tree":
        """Every image a decision of its own, with one action that is the image."""
        every_M = np.arange(count)
        return cls(np.full(count, num_steps - 1), every_M, every_M.reshape(-1, 1, 1), count)

    def reduce(self, reward_M: np.ndarray, leaf: int | None = None) -> np.ndarray:
        """Reward of each action, (N, K): the mean of its leaves', or that of its leaf number `leaf`.

        NaN where a leaf is a hole, or missing.
        """
        if leaf is not None:
            leaf_NK = self.leaf_NKL[..., leaf]
            return np.where(leaf_NK >= 0, reward_M[leaf_NK], np.nan)
        owned_NKL = self.leaf_NKL >= 0
        reward_NKL = np.where(owned_NKL, reward_M[self.leaf_NKL], 0.0)
        return reward_NKL.sum(-1) / owned_NKL.sum(-1)


@dataclass(frozen=True)
class Decisions:
    """What the learner trains on: stays in the object store between worker and learner."""

    step_N: np.ndarray
    state_NZ: np.ndarray
    """x_i as the model saw it, fp32."""
    action_NKZ: np.ndarray
    """x_{i+1} of each action, fp32."""
    log_prob_NK: np.ndarray
    """Under the policy that sampled: a monitor of drift, not the old log-prob of the ratio."""
    weight_N: np.ndarray
    """1 / (marginal probability that the plan has the decision's step): how often each counts in the loss."""
    conditioning: dict[str, np.ndarray] = field(default_factory=dict)
    """Text embeddings of the one prompt, each (1, …), in the compute dtype as `actors.policy.arrays` keeps it."""


@dataclass(frozen=True)
class Leaves:
    """What objectives on finished images train on, in place of decisions."""

    address: tuple[int, int, int]
    """The task's address, from which the learner draws its own noise."""
    latent_MZ: np.ndarray
    """x₀ of each image, fp32."""
    conditioning: dict[str, np.ndarray]
    """Text embeddings of the one prompt, each (1, …), in the compute dtype as `actors.policy.arrays` keeps it."""


@dataclass(frozen=True)
class Cost:
    """What a piece of work cost."""

    nfe: int = 0
    """Transformer forwards of one latent; guidance counts 2."""
    padding: int = 0
    """Further forwards spent on rows that fill a micro-batch."""
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
    """What the driver reads of a generated task; experience and images stay in the object store."""

    tree: Tree
    finite_M: np.ndarray
    """Whether latent and pixels of each image are finite. Others would be black and get a score."""
    cost: Cost
