"""`tempflow eval`: score a prompt file with every scorer of a recipe, for the base model and for an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from services.base.errors import UserError
from system.commands.arguments import Overrides, Recipe, console, say_next
from system.commands.plain import plain
from system.loop.stop import StopFlag

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from actors.policy.settings import PolicySettings
    from actors.policy.weights import Arrays, Exported, Weights
    from system.loop.evaluate import Evaluation
    from system.loop.roles import Roles
    from system.recipe.model import RunConfig

    Started = tuple[Roles, Callable[[Weights], Exported]]
    """The roles, and how weights are handed to them."""

app = typer.Typer()


@app.command("eval")
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    prompts: Annotated[
        str | None, typer.Option(help="A prompt file; without it, the recipe's held-out prompts.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="The lora/ (or transformer/) folder of a run, to compare with the base model.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Evaluate in this process, without Ray.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write one row per image to this Parquet file.")] = None,
) -> None:
    """Score a prompt file with every scorer of a recipe: the base model, and an adapter beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from system.recipe.load import load_config

    config = load_config(recipe, overrides or [])
    results = evaluations(config, prompts, adapter, output, local)
    console.print(comparison(results))
    if output:
        named = [r.table.append_column("model", pa.array([name] * len(r.table))) for name, r in results.items()]
        pq.write_table(pa.concat_tables(named, promote_options="default"), output)
    say_next(
        "write the adapter with a model card: tempflow export RUN --to FOLDER"
        if adapter
        else f"compare an adapter with the base model: tempflow eval {recipe} --adapter RUN/lora"
    )


def evaluations(
    config: RunConfig, prompts: str | None, adapter: Path | None, output: Path | None, local: bool = False
) -> dict[str, Evaluation]:
    """The evaluation of the base model as `base`, and that of the adapter as `adapter`.

    Args:
        output: a file that will be written; it is checked before anything starts.
        local: evaluate in this process instead of on Ray.

    Raises:
        UserError: there are no prompts, the adapter does not fit the model, or the output cannot be written.
    """
    from actors.policy.trained import check_trained, read_trained
    from system.checks.checks import By, refuse
    from system.loop.evaluate import evaluate
    from system.loop.prompts import check_rows, prompts_of
    from system.run.outputs import check_output

    refuse(config, By.EVAL)
    if output:
        check_output(output, "--output")
    arrays = None
    if adapter:
        check_trained(config.policy, adapter, "--adapter")
        arrays = read_trained(adapter, config.policy.lora, "--adapter")
    file = prompts or config.data.heldout
    if file is None:
        raise UserError("no prompts to evaluate: give --prompts, or a recipe with data.heldout")
    heldout = prompts_of(config.data, file)
    check_rows(file, heldout, config.scorers)
    results: dict[str, Evaluation] = {}
    with StopFlag() as stop, (_local_roles if local else _ray_roles)(config, stop) as (roles, exported):
        results["base"] = evaluate(roles, config, heldout, stop.check, base=True)
        if arrays is not None:
            weights = exported(_as_a_learner_sends(arrays, config.policy))
            results["adapter"] = evaluate(roles, config, heldout, stop.check, weights=weights)
    return results


def _as_a_learner_sends(arrays: Arrays, policy: PolicySettings) -> Weights:
    """Weights from a file as version 0, in the compute dtype."""
    from actors.policy.arrays import to_arrays, to_tensor
    from actors.policy.family import DTYPES
    from actors.policy.weights import Weights, checksum

    sent = to_arrays({name: to_tensor(array).to(DTYPES[policy.dtype]) for name, array in arrays.items()})
    return Weights(0, checksum(sent), sent)


@contextmanager
def _ray_roles(config: RunConfig, stop: StopFlag) -> Iterator[Started]:
    import ray

    from actors.policy.weights import Exported
    from system.launch.cluster import connect
    from system.launch.roles import RayRoles

    def exported(weights: Weights) -> Exported:
        return Exported((ray.put(weights.arrays),), weights.label)

    with TemporaryDirectory(prefix="tempflow-eval-") as logs, ExitStack() as stack:
        stack.callback(ray.shutdown)
        connect()
        with stop.starting():
            roles = stack.enter_context(RayRoles(config, [], Path(logs), learns=False))
        yield roles, exported


@contextmanager
def _local_roles(config: RunConfig, stop: StopFlag) -> Iterator[Started]:
    from actors.policy.weights import Exported
    from system.local.roles import LocalRoles

    def exported(weights: Weights) -> Exported:
        return Exported((weights.arrays,), weights.label)

    yield LocalRoles(config, [], stop.check, learns=False), exported


def comparison(results: dict[str, Evaluation]) -> Table:
    """Mean score by scorer and category, and with an adapter the paired difference with its 95% interval."""
    import numpy as np
    from rich.table import Table

    table = Table(title=f"{len(results['base'].table)} prompts, one image each; images without a score are left out")
    for column in ("score", "images", *results, *(["difference", "95% interval"] if len(results) == 2 else [])):
        table.add_column(column, justify="left" if column == "score" else "right")
    summaries = {name: result.summary() for name, result in results.items()}
    for key in [key for key in summaries["base"] if key.startswith("eval/")]:
        columns = [_column(result, key) for result in results.values()]
        known = ~np.any(np.isnan(columns), axis=0)
        cells = [str(known.sum()), *(f"{summary[key]:.4f}" for summary in summaries.values())]
        if len(columns) == 2:
            cells += _difference(*columns)
        table.add_row(plain(key.removeprefix("eval/")), *cells)
    return table


def _column(result: Evaluation, key: str) -> np.ndarray:
    _, name, *category = key.split("/", 2)
    table = result.table
    if category:
        table = table.take([i for i, found in enumerate(table["category"].to_pylist()) if found == category[0]])
    return table[name].to_numpy()


def _difference(before: np.ndarray, after: np.ndarray) -> tuple[str, str]:
    """Mean of the paired differences and its 95% interval, as text."""
    from system.report.data import paired_score

    pair = paired_score("", None, before, after)
    if pair.pairs < 2:
        return "", ""
    low, high = pair.difference - pair.half_interval, pair.difference + pair.half_interval
    return f"{pair.difference:+.4f}", f"{low:+.4f} … {high:+.4f}"
