"""What moves between the roles: decisions, and the leaves that score them. NumPy only, no Torch, no Ray.

Shape legend: N trained decisions of a task, K actions a decision, L leaves an action owns, M leaves (images) of the
task, Z latent dimensions.
"""

from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class Tree:
    """Who owns what in one task: small, read by the driver."""

    step_N: np.ndarray
    """Branch step of each decision."""
    seed_N: np.ndarray
    """Index of the initial noise (trunk) of each decision."""
    leaf_NKL: np.ndarray
    """Leaves below each action, −1 where an action owns fewer than L."""
    num_leaves: int

    def reduce(self, reward_M: np.ndarray) -> np.ndarray:
        """Mean reward of each action's leaves, (N, K); NaN where one of them is a hole."""
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
    conditioning: dict[str, np.ndarray] = field(default_factory=dict)
    """Text embeddings of the one prompt, each (1, …) fp32."""


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
