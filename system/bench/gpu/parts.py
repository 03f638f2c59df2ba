"""The parts of `tempflow bench gpu`, in the order in which they run. No Torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part: the function `measure` of the file of its name."""

    title: str
    shows: str
    """What it proves or measures, in one sentence."""
    estimate_s: float
    """Seconds on an H100, a guess; only those of `forward` were compared with a roofline."""
    bound_s: float
    """Seconds after which it begins no new row."""


PARTS = {
    "card": Part(
        "The card",
        "What the card is, and the rates that it reaches: matrix products, attention, memory.",
        estimate_s=20,
        bound_s=30,
    ),
    "parity": Part(
        "The CPU's numbers",
        "In fp32 without TF32, the card gives the CPU's states, log-probabilities, images and update, from the same "
        "weights and noise.",
        estimate_s=35,
        bound_s=60,
    ),
    "ratio": Part(
        "The first ratio",
        "In bf16, the first ratio of an update is exactly 1, eager and compiled; and how far rollout and learner drift "
        "apart when their micro-batches differ.",
        estimate_s=100,
        bound_s=110,
    ),
    "determinism": Part(
        "The same bits again",
        "With deterministic algorithms, two processes give the same rollouts and weights; and what that costs.",
        estimate_s=90,
        bound_s=120,  # three processes in turn, none of which may be left out; each starts PyTorch anew
    ),
    "training": Part(
        "Training, killed and resumed",
        "A whole training run on the card that is killed with SIGKILL and resumed has the bits of an undisturbed one.",
        estimate_s=70,
        bound_s=90,
    ),
    "forward": Part(
        "Forwards and backwards",
        "NFE a second, share of the measured matrix-product peak, and memory against the estimate, at full size.",
        estimate_s=110,
        bound_s=130,
    ),
    "surroundings": Part(
        "Around the transformer",
        "Images a second of VAEs, text encoders and reward models, and how fast weights are exported.",
        estimate_s=50,
        bound_s=60,
    ),
}
"""The parts by name."""

GRACE_S = 45
"""A part that is not done so many seconds after its bound ends with the stacks of its threads: it hangs, or one row of
it takes that long."""
WITHOUT_GPU = 4
"""Bounds are so many times as long on a CPU."""
LONGEST_S = 1200
"""A process of a part that cannot even end itself is killed after so many seconds."""
