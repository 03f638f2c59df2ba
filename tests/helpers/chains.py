"""Trees of stochastic chains whose states all have baselines."""

import numpy as np

from actors.trajectory import Tree


def tree_of(seeds: int, steps: int) -> Tree:
    """Trajectories as the sampler lays them out: baselines step after step, then the final images; as it lists them."""
    leaf = np.full((steps, seeds, steps + 1), -1)
    for i in range(steps):
        for seed in range(seeds):
            leaf[i, seed, : steps + 1 - i] = [*(j * seeds + seed for j in range(i, steps)), steps * seeds + seed]
    return Tree(
        np.repeat(np.arange(steps), seeds),
        np.tile(np.arange(seeds), steps),
        leaf.reshape(steps * seeds, 1, steps + 1),
        (steps + 1) * seeds,
    )
