"""The ratio in bf16 is exactly 1 while the weights stand still; and the drift between rollout and learner by step."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from actors.policy.settings import PolicySettings
from system.bench.gpu.models import MINIATURE, MODELS, settings_of
from system.bench.gpu.record import Record
from system.bench.gpu.work import free, still_update, task_of, update_of

GUIDANCE = 4.5
ROLLOUT_ROWS, LEARNER_ROWS = 24, 5
"""Unequal micro-batches, as recipes have them: a kernel may add up in another order for another number of rows."""


def measure(record: Record) -> None:
    """Check every model eagerly and measure drift; then check every model compiled, which takes longest."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        _check_ratios(record, folder, compiled=False)
        for dtype in ("fp32", "bf16"):
            what = f"the drift in {dtype}"
            if record.has_time(what):
                with record.attempt(what):
                    settings = settings_of(MINIATURE, folder, dtype=dtype, device=record.device, guidance=GUIDANCE)
                    _drift(record, settings)
        if record.small:
            record.note("Compiled models were left out: there is no GPU, and compiling for a CPU takes minutes.")
        else:
            _check_ratios(record, folder, compiled=True)


def _check_ratios(record: Record, folder: Path, compiled: bool) -> None:
    """A check for each model. Without a C compiler, for one, no model is compiled."""
    for model in MODELS:
        how = f"{model}, {'compiled' if compiled else 'eager'}"
        if record.has_time(f"the first ratio of {how}"):
            with record.attempt(how):
                settings = settings_of(model, folder, dtype="bf16", device=record.device, compile=compiled)
                deviation, grad_norm = still_ratio(settings)
                said = f"|ρ − 1| ≤ {deviation:g}, gradient norm {grad_norm:.3g}"
                record.check(how, deviation == 0 and grad_norm > 0, said)


def still_ratio(settings: PolicySettings) -> tuple[float, float]:
    """max |ρ − 1| of an update whose optimizer steps are too small to change a weight, and the gradient's norm.

    The second of two minibatches compares with old values that were computed before the first step. Equal weights give
    ratios of exactly 1 if the forward gives the same bits each time.
    """
    if settings.compile:
        torch.compiler.reset()  # a process compiles only so many versions of one forward, and runs the rest eagerly
    decisions, _ = task_of(settings)
    stats = still_update(settings, decisions)
    free()
    return stats.ratio_max_deviation, stats.grad_norm


def _drift(record: Record, settings: PolicySettings) -> None:
    """Rows of |log p(rollout) − log p(learner)| by sampling step."""
    decisions, _ = task_of(settings, ROLLOUT_ROWS)
    _, stats = update_of(settings, decisions, LEARNER_ROWS)
    title = (
        f"Drift |Δ log p| of the miniature at guidance {GUIDANCE}: micro-batches of {ROLLOUT_ROWS} rows in the rollout "
        f"and of {LEARNER_ROWS} decisions in the learner"
    )
    for i, (mean, most) in enumerate(zip(stats.drift_mean, stats.drift_max, strict=True)):
        if mean == mean:
            record.row(title, dtype=settings.dtype, step=i, mean=mean, max=most)
