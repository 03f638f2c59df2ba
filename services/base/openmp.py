"""How long the threads of PyTorch spin while they wait for each other."""

import os

ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}
"""Variables for every process that computes. GNU's OpenMP reads them when PyTorch is imported.

A thread that waits for the others of its process spins 300,000 times by default before it sleeps. That is right for a
process that has the cores for itself. Where two processes with two threads each share two cores, a waiting thread keeps
the one that it waits for off its core: a forward pass of the miniature takes 3.5 s where it takes 0.1 s with a thousand
spins. Alone on the cores a thousand are no slower (docs/results/performance.md).
"""


def share_cores() -> None:
    """Set the variables for this process and those that it starts; a variable that is set stays as it is."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
