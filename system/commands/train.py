"""`tempflow train`: a run of a recipe, or with `--dry-run` what it would cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.base.errors import UserError
from services.base.plain import plain
from system.commands.arguments import Overrides, Recipe, console, same, say_next

if TYPE_CHECKING:
    from system.recipe.model import RunConfig
    from system.recipe.provenance import Sources

app = typer.Typer()


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue the run of this name from its latest checkpoint.")] = False,
    accept_changes: Annotated[
        bool, typer.Option(help="Resume even if the prompts or a model have changed since the run began.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process, without Ray: same weights, one worker at a time.")
    ] = False,
    page: Annotated[
        bool | None,
        typer.Option(
            help="Serve the live page of the run on a free port of 127.0.0.1 while it trains.",
            show_default="--page on a terminal, otherwise --no-page",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Check the recipe and print what a training step costs; start nothing.")
    ] = False,
) -> None:
    """Train a recipe. The run folder gets checkpoints, metrics, an adapter and a report."""
    from system.recipe.load import load_with_sources
    from system.training import train_run

    config, sources = load_with_sources(recipe, overrides or [])
    if dry_run:
        show_cost(config, sources)
        what = same(recipe, overrides)
        say_next(f"tempflow doctor {what} checks this machine; tempflow train {what} starts the run")
        return
    page = sys.stdout.isatty() if page is None else page
    code = train_run(config, resume, console, accept_changes, local, page)
    run = Path(config.output) / config.name
    if code:
        again = " --local" if local else ""
        say_next(f"tempflow train {run} --resume{again} continues the run; tempflow watch {run} opens its page again")
    else:
        trained = run / ("lora" if config.policy.lora else "transformer")
        images = f'tempflow sample {run} --adapter {trained} --prompt "…"'
        say_next(f"open {run}/report.html; open its page again: tempflow watch {run}; make images: {images}")
    raise typer.Exit(code)


def show_cost(config: RunConfig, sources: Sources) -> None:
    """Check a recipe, and print it with what a training step costs.

    Raises:
        UserError: the first problem that a check finds.
    """
    from system.capacity.cards import CARDS
    from system.capacity.estimate import estimate_of
    from system.capacity.estimate_text import estimate_sentences, estimate_table
    from system.checks.checks import By, refuse
    from system.recipe.dump import dump_with_sources

    refuse(config, By.DRY_RUN)
    typer.echo(dump_with_sources(config, sources))
    try:
        estimate = estimate_of(config, None, CARDS["H100"])
    except UserError as unknown:  # the recipe is in order, and its cost is not known
        console.print(plain(unknown), soft_wrap=True)
        return
    console.print(estimate_table(config, estimate))
    for sentence in estimate_sentences(config, estimate, None):
        console.print(plain(sentence), soft_wrap=True)
