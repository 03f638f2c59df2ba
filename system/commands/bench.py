"""`tempflow bench`: one benchmark, shown as a table or as JSON."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.base.errors import UserError
from system.bench.gpu.parts import PARTS
from system.commands.arguments import Overrides, Recipe, console, say_next

app = typer.Typer()

DEFAULT_RECIPE = "shapes"


@app.command()
def bench(
    kind: Annotated[str, typer.Argument(help="sampler, learner, weights, pipeline, pool, completions or gpu.")],
    recipe: Recipe = DEFAULT_RECIPE,
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
    part: Annotated[
        list[str] | None,
        typer.Option(help=f"For gpu: run this part only; repeat the option for more. Parts: {', '.join(PARTS)}."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="For gpu: also run parts that have passed before.")] = False,
    output: Annotated[Path, typer.Option(help="For gpu: the folder for gpu.json and gpu.html.")] = Path("bench-gpu"),
) -> None:
    """Measure one part against a plain loop, written as in the reference scripts, on the same work.

    `gpu` proves on this machine's GPU that the numbers are right and measures what it can do, in less than ten minutes.
    It takes no recipe, continues where it stopped, and exits with 1 if a check fails.
    """
    import json as encoder
    from contextlib import redirect_stdout

    from system.recipe.load import load_config

    if kind == "gpu":
        if recipe != DEFAULT_RECIPE or overrides or family or simulate:
            raise UserError("`bench gpu` has models of its own; it takes --part, --again, --output and --json")
        from system.bench.gpu.run import run_gpu

        code = run_gpu(output, part or [], again, Console(stderr=True) if json else console)
        if json:
            typer.echo((output / "gpu.json").read_text())
        say_next(f"open {output}/gpu.html; plan with it: tempflow plan RECIPE --gpus 1xNAME --card {output}/gpu.json")
        raise typer.Exit(code)
    if part or again:
        raise UserError(f"--part, --again: only `bench gpu` has parts, not `bench {kind}`")
    from system.bench.run import bench_table, run_bench

    log = Console(stderr=True) if json else console
    with redirect_stdout(sys.stderr if json else sys.stdout):  # Ray's own messages
        config, simulated = load_config(recipe, overrides or []), workers if simulate else None
        figures = run_bench(kind, config, family, rounds, simulated, log)
    console.print_json(encoder.dumps(figures)) if json else console.print(bench_table(kind, figures))
    say_next("docs/measuring.md explains the figures; docs/results/performance.md has those of a CPU")
