"""`tempflow bench`: which benchmark, on which model, shown as a table or as JSON."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from actors.rollout.plans.settings import TrunkSettings
from services.base.errors import UserError
from system.bench.learner import bench_learner
from system.bench.models import FULL_SIZES, bench_policy
from system.bench.sampler import bench_sampler
from system.recipe.model import RunConfig

OF_A_MODEL = ("sampler", "learner")
KINDS = (*OF_A_MODEL, "weights", "pipeline", "pool", "completions")


def run_bench(
    kind: str, config: RunConfig, full_size: str | None, rounds: int, simulated: int | None, console: Console
) -> dict[str, Any]:
    """Figures of one benchmark.

    Args:
        simulated: simulate roles, with numbers of workers up to this one; None computes for real.

    Raises:
        UserError: as in `check_bench`.
    """
    check_bench(kind, config, full_size, simulated)
    match kind:
        case "pool":
            from system.bench.pool import bench_pool

            return bench_pool(config, rounds)
        case "completions":
            from system.bench.completions import bench_completions

            return bench_completions(config, rounds)
        case "weights":
            from system.bench.pipeline import bench_weights

            return bench_weights(config, rounds)
        case "pipeline" if simulated:
            from system.bench.simulate import bench_simulated

            return bench_simulated(config, rounds, console, simulated)
        case "pipeline":
            from system.bench.pipeline import bench_pipeline

            return bench_pipeline(config, rounds + 1, console)
    torch.set_num_threads(config.rollout.threads if kind == "sampler" else config.learner.threads)
    policy, conditioning = bench_policy(config.policy, full_size)
    return (bench_sampler if kind == "sampler" else bench_learner)(config, policy, conditioning, rounds)


def check_bench(kind: str, config: RunConfig, full_size: str | None, simulated: int | None) -> None:
    """Refuse a benchmark that does not exist, or that the recipe or the options do not fit.

    Raises:
        UserError: no such benchmark or model, or one that needs the recipe's own model or a whole trunk.
    """
    if kind not in KINDS:
        raise UserError(f"no benchmark `{kind}`; there are {', '.join(KINDS)} and gpu")
    if full_size is not None and full_size not in FULL_SIZES:
        raise UserError(f"--family: no `{full_size}`; there are {', '.join(FULL_SIZES)}")
    if full_size and kind not in OF_A_MODEL:
        raise UserError(f"--family: `bench {kind}` runs what the recipe names, its own model")
    if simulated and kind != "pipeline":
        raise UserError(f"--simulate: `bench {kind}` measures computing; only `bench pipeline` can do without")
    whole_trunk = isinstance(config.plan, TrunkSettings) and not config.plan.strata and config.plan.strides == (1.0,)
    if kind in (*OF_A_MODEL, "completions") and not whole_trunk:
        raise UserError(f"`bench {kind}` measures TempFlow-GRPO's plan; give a recipe whose plan is a whole trunk")


def bench_table(kind: str, figures: dict[str, Any]) -> Table:
    """Figures as rows; nested figures become columns."""
    nested = {name: part for name, part in figures.items() if isinstance(part, dict)}
    table = Table(title=f"bench {kind}")
    for column in ("", *nested):
        table.add_column(column, justify="left" if not column else "right")
    for key in dict.fromkeys(key for part in nested.values() for key in part):
        table.add_row(key, *[_text(part.get(key)) for part in nested.values()])
    table.add_section()
    for name, value in figures.items():
        if not isinstance(value, dict):
            table.add_row(name, _text(value))
    return table


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
