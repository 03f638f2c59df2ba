"""Recipes from YAML files, run folders and overrides."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from services.base.errors import UserError, first_line
from services.base.settings import Settings
from services.base.storage import Folder
from services.base.text import read_text
from services.base.yaml_text import dump_yaml, load_yaml
from services.scoring.scorer import make_importable
from services.serving.settings import PoolSettings
from system.recipe.compose import NAMES, lay_over, set_key
from system.recipe.explain import explain
from system.recipe.find import RUN_RECIPE, find_recipe, shipped_recipes
from system.recipe.model import RunConfig

log = logging.getLogger(__name__)

Config = TypeVar("Config", bound=Settings)

RUN_PARTS = ("metrics.jsonl", "checkpoints", "driver.lock")
"""A folder with one of these is that of a run."""
OF_RUN = "tempflow"
"""The key of that file which is no setting: what began the run."""


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply `key=value` overrides, validate.

    Raises:
        UserError: names the file or override, the key, the value and the nearest valid key.
    """
    raw, source, overridden = _resolve(recipe, overrides)
    return parse_config(RunConfig, raw, source, overridden)


def load_pool(recipe: str, overrides: Sequence[str] = ()) -> PoolSettings:
    """What of a recipe makes its reward pool: `scorers` and `serve`; it need not hold more.

    Raises:
        UserError: as `load_config`.
    """
    raw, source, overridden = _resolve(recipe, overrides)
    of_pool = {key: value for key, value in raw.items() if key in PoolSettings.model_fields}
    return parse_config(PoolSettings, of_pool, source, overridden)


def _resolve(recipe: str, overrides: Sequence[str]) -> tuple[dict[str, Any], str, dict[str, str]]:
    """The mapping of a recipe with overrides applied, where it was read, and each override by the key it set."""
    folder = Path(recipe).parent if Path(recipe).name == RUN_RECIPE else Path(recipe)
    if any((folder / name).exists() for name in RUN_PARTS):
        path, raw = folder / RUN_RECIPE, _of_run(folder)
    else:
        path = find_recipe(recipe)
        raw = _read(path, ())
    make_importable(Path.cwd())
    raw.setdefault("name", path.stem)
    by_name = sorted(overrides, key=lambda text: text.partition("=")[0] not in NAMES)
    return raw, str(path), {set_key(raw, text): text for text in by_name}


def _of_run(folder: Path) -> dict[str, Any]:
    """The mapping of the recipe in a run folder, or of its newest checkpoint where that is torn.

    The run is where it lies now, which may be elsewhere than where it began.

    Raises:
        UserError: it is in neither.
    """
    from system.run.checkpoint import Checkpoints

    file, raw = folder / RUN_RECIPE, None
    try:
        raw = read_mapping(file, "a recipe")
    except (UserError, OSError) as error:
        log.warning("%s, so the recipe of the newest checkpoint is read", first_line(error))
    by = raw.pop(OF_RUN, None) if raw else None
    if raw is None or not isinstance(by, dict) or "run" not in by:  # its last key
        kept = Checkpoints(Folder.at(str(folder / "checkpoints")), keep=1).recipe()
        if kept is None:
            raise UserError(
                f"`{folder}` has no whole {RUN_RECIPE} and no checkpoint with the recipe of the run; give the recipe "
                "and overrides that it began with, and checkpoint.folder=… if it had one"
            )
        raw = load_yaml(kept, f"the checkpoints in `{folder}`")
        by = raw.pop(OF_RUN, None)
    make_importable(*(by.get("folders") or []))
    return raw | {"name": folder.absolute().name, "output": str(folder.absolute().parent)}


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping of a recipe laid over that of the recipe which it `extends`. Scorers beside either are found.

    A run that is extended gives its settings, but neither its name nor its place.
    """
    if path.parent != shipped_recipes():
        make_importable(path.parent)
    raw = read_mapping(path, "a recipe")
    if raw.pop(OF_RUN, None):
        raw.pop("name", None)
        raw.pop("output", None)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if path in children:
        raise UserError(f"{path}: `extends` leads back to this recipe")
    return lay_over(_read(find_recipe(str(parent)), (*children, path)), raw)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        UserError: it cannot be read or holds something else; names the file and `what` it should be.
    """
    raw = load_yaml(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {what} is a mapping of keys to values")
    return raw


def parse_config(
    model: type[Config], raw: dict[str, Any], source: str, overrides: dict[str, str] | None = None
) -> Config:
    """Validate a resolved mapping; errors name `source`, or the override that set the key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error, model, source, overrides or {})) from error


def dump_config(config: RunConfig) -> str:
    """The resolved recipe as YAML."""
    return dump_yaml(config.model_dump(mode="json"))
