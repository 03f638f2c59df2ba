"""`tempflow config` and `tempflow recipes`: what a recipe says, and which ones tempflow brings."""

import typer

from system.commands.arguments import Overrides, Recipe

app = typer.Typer()


@app.command()
def config(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe with all its settings, defaults included."""
    from system.recipe.load import dump_config, load_config

    typer.echo(dump_config(load_config(recipe, overrides or [])), nl=False)


@app.command()
def recipes() -> None:
    """List the recipes that come with tempflow."""
    from system.recipe.find import recipe_names

    for name in recipe_names():
        typer.echo(name)
