"""`tempflow eval`: compare adapters, checkpoints and the base model on held-out prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.base.errors import UserError
from services.base.plain import plain
from system.commands.arguments import Overrides, Recipe, console, say_next

if TYPE_CHECKING:
    from rich.table import Table

    from system.evaluation.run import Results
    from system.recipe.model import RunConfig

app = typer.Typer()


@app.command("eval")
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    prompts: Annotated[
        str | None, typer.Option(help="A prompt file; without it, the recipe's held-out prompts and sets.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="The lora/, best/ or transformer/ folder of a run, or NAME=FOLDER; repeat the option for more."
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="A run's checkpoint: [NAME=]RUN[@STEP] with the STEP best, last or a number; repeatable."),
    ] = None,
    base_after: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            max=1,
            help="The base model takes over after this share of the sampling steps, such as 0.8; repeat it to compare "
            "several.",
            show_default="1, which is never",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="The name of the model that the others are compared with.", show_default="base"),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Evaluate in this process, without Ray.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write one row per image to this Parquet file.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write an HTML page with the images side by side to this file.")
    ] = None,
) -> None:
    """Score held-out prompts: the base model, and adapters and checkpoints beside it, on the same noise."""
    from system.recipe.load import load_config

    config = load_config(recipe, overrides or [])
    models = adapter or [], checkpoint or [], base_after or [], against
    results = run_eval(config, prompts, *models, local, output, page)
    for table in comparisons(results):
        console.print(table)
    for file in (output, page):
        if file:
            console.print(plain(f"wrote {file}"), soft_wrap=True)
    say_next(
        "write the best one with a model card: tempflow export RUN --to FOLDER"
        if adapter or checkpoint
        else f"compare an adapter with the base model: tempflow eval {recipe} --adapter RUN/lora"
    )


def run_eval(
    config: RunConfig,
    prompts: str | None,
    adapters: list[str],
    checkpoints: list[str],
    base_after: list[float],
    against: str | None,
    local: bool,
    output: Path | None,
    page: Path | None,
) -> Results:
    """Evaluate, and write the files that are asked for. They are checked before anything starts.

    Args:
        prompts: a file that takes the place of the recipe's held-out sets.
        base_after: as `contenders_of` takes it.
        against: as `contenders_of` takes it.
        output: a Parquet file; None for none.
        page: an HTML file; None for none.

    Raises:
        UserError: there are no prompts, weights do not fit the model, or a file cannot be written.
    """
    import pyarrow.parquet as pq

    from system.checks.checks import By, refuse
    from system.evaluation.contenders import contenders_of
    from system.evaluation.page import write_page
    from system.evaluation.pictures import Pictures
    from system.evaluation.run import evaluate_all
    from system.evaluation.scores import table_of
    from system.loop.heldout import read_sets
    from system.run.outputs import check_output

    if prompts is not None:
        data = config.data.model_copy(update={"heldout": prompts})
        settings = config.eval.model_copy(update={"sets": {}, "scorers": None})
        config = config.model_copy(update={"data": data, "eval": settings})
    if not config.eval_sets:
        raise UserError("no prompts to evaluate: give --prompts, or a recipe with data.heldout or eval.sets")
    refuse(config, By.EVAL)
    for file, option in ((output, "--output"), (page, "--page")):
        if file:
            check_output(file, option)
    contenders, sets = contenders_of(config, adapters, checkpoints, base_after, against), read_sets(config)
    pictures = Pictures()
    results = evaluate_all(config, contenders, sets, local, pictures.watcher if page else lambda _: None)
    if output:
        pq.write_table(table_of(results), output)
    if page:
        write_page(config, contenders, results, pictures, page)
    return results


def comparisons(results: Results) -> list[Table]:
    """A table for each set: each score's mean, and its paired difference from the first model, ± half the 95% interval.

    The title names the first model.
    """
    from rich.table import Table

    from system.evaluation.scores import lines

    tables: dict[str, Table] = {}
    last = None
    for line in lines(results):
        if line.set not in tables:
            of = next(iter(results.values()))[line.set].of
            each = "one image" if of.images_per_prompt == 1 else f"{of.images_per_prompt} images"
            tables[line.set] = Table(
                title=plain(
                    f"{line.set}: {of.count} prompts, {each} each; images without a score left out; differences from "
                    f"{next(iter(results))}"
                )
            )
            for column in ("score", "model", "prompts", "mean", "difference, 95%"):
                tables[line.set].add_column(column, justify="left" if column in ("score", "model") else "right")
        key = "/".join(part for part in (line.score, line.category) if part)
        change = ""
        if (pair := line.pair) is not None and pair.pairs > 1:
            change = f"{pair.difference:+.4f} ± {pair.half_interval:.4f}"
        first = (line.set, key) != last
        last = (line.set, key)
        tables[line.set].add_row(
            plain(key if first else ""), plain(line.model), str(line.prompts), f"{line.mean:.4f}", change
        )
    return list(tables.values())
