"""`tempflow config` and `tempflow recipes`: what a recipe says, and which ones tempflow brings."""

from math import ceil

import typer

from system.commands.arguments import Overrides, Recipe, same, say_next

app = typer.Typer()


@app.command()
def config(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe with all its settings, defaults included, and the file that each value came from."""
    from system.recipe.dump import dump_with_sources
    from system.recipe.load import load_with_sources

    typer.echo(dump_with_sources(*load_with_sources(recipe, overrides or [])), nl=False)
    say_next(f"tempflow train {same(recipe, overrides)} --dry-run shows what a training step costs")


@app.command()
def recipes() -> None:
    """List the recipes that come with tempflow: what each is for, and how many GPUs its roles ask for."""
    from system.checks.machine import gpus_wanted
    from system.recipe.find import recipe_names, what_for
    from system.recipe.load import load_config

    rows = [("recipe", "GPUs", "what for")]
    rows += [(name, str(ceil(gpus_wanted(load_config(name)))), what_for(name)) for name in recipe_names()]
    width = max(len(name) for name, *_ in rows)
    for name, gpus, purpose in rows:
        typer.echo(f"{name:{width}}  {gpus:>4}  {purpose}")
    say_next("tempflow plan RECIPE says which GPUs it fits, how long it takes and what it costs")
