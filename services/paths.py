"""Where a model or data file named in a recipe lies."""

import importlib.util
from pathlib import Path

from services.errors import UserError

PACKAGE_PREFIX = "package:"


def resolve_model(name: str) -> str:
    """`package:NAME/PATH` to the folder inside that installed package; anything else as it is (a path or a hub id).

    Raises:
        UserError: the package or the path inside it does not exist.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return name
    package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"`{name}`: no package `{package}` is installed")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise UserError(f"`{name}`: the package `{package}` has no `{inside}`")
    return str(path)


def check_model(what: str, name: str) -> None:
    """Refuse a path that looks local and holds no transformers model; a hub id is taken on trust.

    Raises:
        UserError: says so, beginning with `what`.
    """
    folder = resolve_model(name)
    looks_local = folder.startswith((".", "/", "~")) or folder.count("/") > 1
    if looks_local and not (Path(folder) / "config.json").exists():
        raise UserError(f"{what}: no model at `{folder}`; give a folder with config.json or a hub id")
