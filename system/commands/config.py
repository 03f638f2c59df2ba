"""`tempflow config` and `tempflow recipes`: what a recipe says, and which ones tempflow brings."""

import typer

from system.commands.arguments import Overrides, Recipe

app = typer.Typer()


@app.command()
def config(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe with all its settings, defaults included, and the file that each value came from."""
    from system.recipe.dump import dump_with_sources
    from system.recipe.load import load_with_sources

    typer.echo(dump_with_sources(*load_with_sources(recipe, overrides or [])), nl=False)


@app.command()
def recipes() -> None:
    """List the recipes that come with tempflow."""
    from system.recipe.find import recipe_names

    for name in recipe_names():
        typer.echo(name)
