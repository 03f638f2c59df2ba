"""The plan of stochastic chains."""

import math

import numpy as np

from actors.rollout.plans.plan import Fork, Plan
from actors.rollout.plans.settings import ChainSettings


def chain_plan(settings: ChainSettings, num_steps: int, rng: np.random.Generator) -> Plan:
    """All steps are stochastic, and a share of them is trained. The last is never trained: its likelihood overflows.

    Shared noise is one trunk that splits at the first step. This gives the same distribution, and the first forward is
    computed only once.
    """
    steps = np.arange(num_steps - 1)
    trained = set(rng.permutation(steps)[: math.ceil(settings.trained_share * len(steps))].tolist())
    first, seeds = (settings.seeds, 1) if settings.shared_noise else (1, settings.seeds)
    return Plan(
        seeds,
        tuple(Fork(1 if i else first, keep_trunk=False, trained=i in trained) for i in range(num_steps)),
    )
