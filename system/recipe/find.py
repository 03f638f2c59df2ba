"""Where recipes are: files, run folders, and those that come with tempflow."""

import difflib
from importlib import resources
from pathlib import Path

from services.base.errors import UserError

RUN_RECIPE = "config.yaml"
"""The recipe of a run, in its folder."""


def find_recipe(name: str) -> Path:
    """A recipe by path, or by name among those that come with tempflow.

    Raises:
        UserError: there is none; names the nearest.
    """
    path = Path(name)
    if (path / RUN_RECIPE).is_file():
        return path / RUN_RECIPE
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise UserError(f"no recipe at `{name}`; `tempflow recipes` lists those that come with tempflow")
    shipped = shipped_recipes() / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    near = difflib.get_close_matches(name, recipe_names(), 1)
    raise UserError(f"no recipe `{name}`; {f'did you mean `{near[0]}`?' if near else f'there are {recipe_names()}'}")


def recipe_names() -> list[str]:
    """Recipes that come with tempflow."""
    return sorted(path.stem for path in shipped_recipes().glob("*.yaml"))


def shipped_recipes() -> Path:
    """The folder of the recipes that come with tempflow."""
    return Path(str(resources.files("configs")))
