"""`tempflow doctor`: what would fail on this machine, or in a recipe, before a run starts."""

from typing import Annotated

import typer

from services.base.plain import plain
from system.commands.arguments import Overrides, console, same, say_next

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}

app = typer.Typer()


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe to check as well as the machine.", show_default=False)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check this machine and a recipe before a run, and say how to fix what would fail (exit code 2 on a problem)."""
    from system.checks.checks import diagnose
    from system.recipe.load import load_config

    config = load_config(recipe, overrides or []) if recipe else None
    levels = set()
    for finding in diagnose(config):
        levels.add(finding.level)
        console.print(f"{finding.level:8}", style=COLOURS[finding.level], end=" ")
        console.print(plain(f"{finding.what}: {finding.says}"), soft_wrap=True)
    if "problem" in levels:
        say_next("correct what is marked as a problem, and run this command again")
    else:
        train = f"tempflow train {same(recipe, overrides)}" if recipe else None
        say_next(train or "check a recipe as well: tempflow doctor RECIPE")
    raise typer.Exit(2 if "problem" in levels else 0)
