"""Finds recipes and layers: files, run folders, and the ones that come with tempflow."""

import difflib
from itertools import takewhile
from pathlib import Path

from actors.methods import method_file
from services.base.errors import UserError

RUN_RECIPE = "config.yaml"
"""The file with the recipe of a run, in the run folder."""
SHIPPED = Path(__file__).resolve().parents[2] / "configs"
"""The folder of the recipes that come with tempflow, beside our packages. Python's path is not searched for it, because
another folder named `configs` could come first there."""
FOLDERS = {"model": "models", "rewards": "rewards", "hardware": "hardware"}
"""The folder of each kind of layer, inside `SHIPPED`. The layer of a method is its file in actors/methods."""


def find_recipe(name: str, beside: Path = Path()) -> Path:
    """A recipe by path, or by name among those that come with tempflow.

    Args:
        beside: the first folder that a path is relative to; the second is the working directory. A recipe that comes
            with tempflow never refers to run folders in the working directory.

    Raises:
        UserError: there is no such recipe. The message suggests the nearest name.
    """
    for path in (beside / name, *([Path(name)] if beside != SHIPPED else [])):
        if (path / RUN_RECIPE).is_file():
            return path / RUN_RECIPE
    return _find(name, beside, "recipe", SHIPPED)


def find_layer(kind: str, name: str, beside: Path = Path()) -> Path:
    """A layer by path, or by name among the layers of its kind that come with tempflow.

    Raises:
        UserError: there is no such layer. The message suggests the nearest name.
    """
    if kind in FOLDERS:
        return _find(name, beside, f"{kind} layer", SHIPPED / FOLDERS[kind])
    if _is_file_name(name):
        return _find_file(name, beside, "method layer")
    return method_file(name)


def _find(name: str, beside: Path, what: str, shipped: Path) -> Path:
    if _is_file_name(name):
        return _find_file(name, beside, what)
    if (path := shipped / f"{name}.yaml").is_file():
        return path
    near = difflib.get_close_matches(name, _names(shipped), 1)
    if near:
        hint = f"did you mean `{near[0]}`?"
    elif shipped == SHIPPED:
        hint = "give a YAML file, the folder of a run, or a name that `tempflow recipes` lists"
    else:
        hint = f"there are {', '.join(_names(shipped))}"
    raise UserError(f"no {what} `{name}`; {hint}")


def _is_file_name(name: str) -> bool:
    return Path(name).suffix in {".yaml", ".yml"}


def _find_file(name: str, beside: Path, what: str) -> Path:
    for path in (beside / name, Path(name)):
        if path.is_file():
            return path
    raise UserError(f"no {what} at `{name}`; correct the path")


def recipe_names() -> list[str]:
    """The names of the recipes that come with tempflow."""
    return _names(SHIPPED)


def layer_names(kind: str) -> list[str]:
    """The names of the layers of a kind that come with tempflow."""
    return _names(SHIPPED / FOLDERS[kind])


def what_for(name: str) -> str:
    """What a recipe that comes with tempflow is for: the first sentence of the comment that its file begins with."""
    lines = (SHIPPED / f"{name}.yaml").read_text().splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
    return comment.partition(". ")[0].rstrip(".")


def _names(folder: Path) -> list[str]:
    """The names of the recipes or layers in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
