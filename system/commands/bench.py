"""`tempflow bench`: one benchmark, shown as a table or as JSON."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from system.commands.arguments import Overrides, Recipe, console

app = typer.Typer()


@app.command()
def bench(
    kind: Annotated[str, typer.Argument(help="sampler, learner, weights, pipeline, pool or completions.")],
    recipe: Recipe = "shapes",
    overrides: Overrides = None,
    family: Annotated[
        str | None, typer.Option(help="Use full-size shapes with random weights: sd35-medium or flux-dev.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds (training steps for pipeline).")] = 3,
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="For pipeline: workers, replicas and a learner that only take time."),
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="For --simulate: the most workers.")] = 64,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure one part against a plain loop, written as in the reference scripts, on the same work."""
    import json as encoder
    from contextlib import redirect_stdout

    from system.bench.run import bench_table, run_bench
    from system.recipe.load import load_config

    log = Console(stderr=True) if json else console
    with redirect_stdout(sys.stderr if json else sys.stdout):  # Ray's own messages
        config, simulated = load_config(recipe, overrides or []), workers if simulate else None
        figures = run_bench(kind, config, family, rounds, simulated, log)
    console.print_json(encoder.dumps(figures)) if json else console.print(bench_table(kind, figures))
