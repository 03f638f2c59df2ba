"""Flow-GRPO's plan, and DanceGRPO's."""

import math

import numpy as np

from actors.rollout.plans.plan import Fork, Plan
from actors.rollout.plans.settings import ChainSettings


def chain_plan(settings: ChainSettings, num_steps: int, rng: np.random.Generator) -> Plan:
    """Flow-GRPO (arXiv 2505.05470): all steps stochastic; the last is sampled but not trained.

    DanceGRPO (arXiv 2505.07818) is the same with one noise shared by a prompt's trajectories, a random share of the
    steps trained, and its own kernel.

    A shared noise is one trunk that splits at the first step: the same distribution, and the first forward is shared.

    Deviation: DanceGRPO may train the last step too, here it is never trained.
    """
    steps = np.arange(num_steps - 1)
    trained = set(rng.permutation(steps)[: math.ceil(settings.trained_share * len(steps))].tolist())
    first, seeds = (settings.seeds, 1) if settings.shared_noise else (1, settings.seeds)
    return Plan(
        seeds,
        tuple(Fork(1 if i else first, keep_trunk=False, trained=i in trained) for i in range(num_steps)),
    )
