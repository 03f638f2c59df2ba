"""The same weights and the same noise in fp32 without TF32: the device gives the CPU's numbers.

The CPU's decisions are also what both sides learn from. The device runs other micro-batches, so that some of its
roundings differ even where it is a CPU, too.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from actors.policy.settings import PolicySettings
from system.bench.gpu.models import MODELS, settings_of
from system.bench.gpu.record import Record
from system.bench.gpu.work import change_of, free, task_of, update_of, without_tf32

BOUND = 1e-4
"""The largest relative difference between devices in fp32. A change of every weight by a rounding of fp32 (6e-8) moves
all that is compared by at most 5e-6; a rounding of TF32 (3e-4) moves the update by 2e-3 or more."""
BOUNDS = {
    "states": BOUND,
    "means": BOUND,
    "log-probabilities": BOUND,
    "images (grey levels)": 1,
    "first |ρ − 1|": 0,
    "drift": BOUND,
    "gradient norm": BOUND,
    "update": BOUND,
}
"""The most that each figure may differ: relative to the CPU's norm, unless its name says otherwise. Halfway between two
of the 255 grey levels, one device may round up and the other down."""


def measure(record: Record) -> None:
    """Compare every model; a model is a row and a check."""
    with TemporaryDirectory() as folder, without_tf32():
        for model in MODELS:
            if not record.has_time(f"the comparison of {model}"):
                continue
            with record.attempt(model):
                here, there = (settings_of(model, Path(folder), dtype="fp32", device=d) for d in ("cpu", record.device))
                found = differences(here, there)
                record.row("Relative differences from the CPU", model=model, **found)
                wrong = beyond(found)
                record.check(model, not wrong, "; ".join(wrong) or "every difference is within its bound")
            free()


def differences(here: PolicySettings, there: PolicySettings) -> dict[str, float]:
    """How far a task and an update of one policy lie from those of another, by the names of BOUNDS."""
    decisions, images_MHWC = task_of(here, micro_batch=8)
    theirs, their_images_MHWC = task_of(there, micro_batch=6)
    learner, stats = update_of(here, decisions, micro_batch=8)
    their_learner, their_stats = update_of(there, decisions, micro_batch=5)
    return {
        "states": relative(decisions.state_NZ, theirs.state_NZ),
        "means": relative(decisions.mean_NZ, theirs.mean_NZ),
        "log-probabilities": relative(decisions.log_prob_NK, theirs.log_prob_NK),
        "images (grey levels)": int(np.abs(images_MHWC.astype(int) - their_images_MHWC).max()),
        "first |ρ − 1|": their_stats.first_ratio_deviation,
        "drift": float(np.nanmax(their_stats.drift_max)),
        "gradient norm": abs(their_stats.grad_norm / stats.grad_norm - 1),
        "update": relative(change_of(learner, here), change_of(their_learner, there)),
    }


def beyond(found: dict[str, float]) -> list[str]:
    """A sentence about each figure that is beyond its bound, or not a number."""
    return [
        f"{name}: {figure:.1e} is more than {BOUNDS[name]:g}"
        for name, figure in found.items()
        if math.isnan(figure) or figure > BOUNDS[name]
    ]


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """The norm of the difference, as a share of the norm of `one`."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))
