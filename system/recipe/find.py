"""Where recipes and their layers are: files, run folders, and those that come with tempflow."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from actors.methods import method_file, method_names
from services.base.errors import UserError

RUN_RECIPE = "config.yaml"
"""The recipe of a run, in its folder."""
SHIPPED = Path(__file__).resolve().parents[2] / "configs"
"""The folder of the recipes that come with tempflow. It lies beside our packages, and is not looked for on Python's
path: a folder of that name in front of it would hide it there."""
FOLDERS = {"model": "models", "rewards": "rewards", "hardware": "hardware"}
"""The folder of each kind of layer, below that of the recipes. The layer of a method is its file in actors/methods."""


def find_recipe(name: str, beside: Path = Path()) -> Path:
    """A recipe by path, or by name among those that come with tempflow.

    Args:
        beside: the folder that a path may be relative to; else it is relative to the working directory. What comes
            with tempflow names nothing of the user's.

    Raises:
        UserError: there is none; names the nearest.
    """
    for path in (beside / name, *([Path(name)] if beside != SHIPPED else [])):
        if (path / RUN_RECIPE).is_file():
            return path / RUN_RECIPE
    return _find(name, beside, "recipe", SHIPPED)


def find_layer(kind: str, name: str, beside: Path = Path()) -> Path:
    """A layer by path, or by name among those of its kind that come with tempflow.

    Raises:
        UserError: there is none; names the nearest.
    """
    if kind in FOLDERS:
        return _find(name, beside, f"{kind} layer", SHIPPED / FOLDERS[kind])
    if _is_file_name(name):
        return _find_file(name, beside, "method layer", method_names())
    return method_file(name)


def _find(name: str, beside: Path, what: str, shipped: Path) -> Path:
    if _is_file_name(name):
        return _find_file(name, beside, what, _names(shipped))
    if (path := shipped / f"{name}.yaml").is_file():
        return path
    near = difflib.get_close_matches(name, _names(shipped), 1)
    hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(_names(shipped))}"
    raise UserError(f"no {what} `{name}`; {hint}")


def _is_file_name(name: str) -> bool:
    return Path(name).suffix in {".yaml", ".yml"}


def _find_file(name: str, beside: Path, what: str, names: Sequence[str]) -> Path:
    for path in (beside / name, Path(name)):
        if path.is_file():
            return path
    known = ", ".join(names)
    raise UserError(f"no {what} at `{name}`; give a file that exists, or one that comes with tempflow: {known}")


def recipe_names() -> list[str]:
    """Recipes that come with tempflow."""
    return _names(SHIPPED)


def _names(folder: Path) -> list[str]:
    """The names of the recipes or layers in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
