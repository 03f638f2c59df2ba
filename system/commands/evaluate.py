"""`tempflow eval`: a prompt file, every scorer, the base model and an adapter beside it."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from rich.console import Console
from rich.table import Table

from actors.policy.weights import Exported, Weights, checksum
from services.base.errors import UserError
from system.commands.plain import plain
from system.commands.train import check
from system.loop.evaluate import Evaluation, evaluate
from system.loop.prompts import read_prompts
from system.loop.stop import StopFlag
from system.recipe.model import RunConfig
from system.report.data import paired
from system.run.outputs import check_output


def run_eval(
    config: RunConfig, prompts: str | None, adapter: Path | None, output: Path | None, console: Console
) -> None:
    """Evaluate, show the table, and write the rows to `output` if that is given.

    Raises:
        UserError: no prompts, the adapter does not fit the model, or the output cannot be written.
    """
    from actors.policy.trained import check_trained, read_trained
    from system.launch.cluster import connect
    from system.launch.roles import RayRoles

    _, heldout = check(config, learns=False)
    if output:
        check_output(output, "--output")
    arrays = None
    if adapter:
        check_trained(config.policy, adapter, "--adapter")
        arrays = read_trained(adapter, config.policy.lora, "--adapter")
    if prompts:
        heldout = read_prompts(prompts, config.data.prompt_column, config.data.category_column)
    if heldout is None:
        raise UserError("no prompts to evaluate: give --prompts, or a recipe with data.heldout")
    results: dict[str, Evaluation] = {}
    with TemporaryDirectory(prefix="tempflow-eval-") as logs, StopFlag() as stop, ExitStack() as stack:
        stack.callback(ray.shutdown)
        connect()
        with stop.starting():
            roles = stack.enter_context(RayRoles(config, [], Path(logs), learns=False))
        results["base"] = evaluate(roles, config, heldout, stop.check, base=True)
        if arrays is not None:
            exported = Exported((ray.put(arrays),), Weights(0, checksum(arrays), arrays).label)
            results["adapter"] = evaluate(roles, config, heldout, stop.check, weights=exported)
    console.print(comparison(results, [scorer.name for scorer in config.scorers]))
    if output:
        named = [r.table.append_column("model", pa.array([name] * len(r.table))) for name, r in results.items()]
        pq.write_table(pa.concat_tables(named), output)


def comparison(results: dict[str, Evaluation], scorers: list[str]) -> Table:
    """Mean score by scorer and category, and with an adapter the paired difference with its 95% interval."""
    table = Table(title=f"{len(results['base'].table)} prompts, one image each; images without a score are left out")
    for column in ("score", "images", *results, *(["difference", "95% interval"] if len(results) == 2 else [])):
        table.add_column(column, justify="left" if column == "score" else "right")
    summaries = {name: result.summary(scorers) for name, result in results.items()}
    for key in [key for key in summaries["base"] if key.startswith("eval/")]:
        known = ~np.any([np.isnan(_column(result, key)) for result in results.values()], axis=0)
        cells = [str(known.sum()), *(f"{summary[key]:.4f}" for summary in summaries.values())]
        if len(results) == 2:
            cells += _difference(*(_column(result, key) for result in results.values()))
        table.add_row(plain(key.removeprefix("eval/")), *cells)
    return table


def _column(result: Evaluation, key: str) -> np.ndarray:
    _, name, *category = key.split("/", 2)
    scores = result.table[name].to_numpy()
    return scores[np.array(result.table["category"].to_pylist()) == category[0]] if category else scores


def _difference(before: np.ndarray, after: np.ndarray) -> tuple[str, str]:
    """Mean of the paired differences and its 95% interval, as text."""
    pair = paired("", None, before, after)
    if pair.pairs < 2:
        return "", ""
    low, high = pair.difference - pair.half_interval, pair.difference + pair.half_interval
    return f"{pair.difference:+.4f}", f"{low:+.4f} … {high:+.4f}"
