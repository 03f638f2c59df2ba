"""Reads recipes from YAML files, their layers, run folders and overrides."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from actors.methods import find_method
from services.base.errors import UserError, first_line
from services.base.settings import Settings
from services.base.storage import Folder
from services.base.text import read_text
from services.base.yaml_text import load_yaml
from services.scoring.scorer import make_importable
from services.serving.settings import PoolSettings
from system.recipe.compose import LAYERS, NAMES, Composition
from system.recipe.explain import explain
from system.recipe.find import RUN_RECIPE, SHIPPED, find_layer, find_recipe
from system.recipe.model import RunConfig
from system.recipe.provenance import Sources

log = logging.getLogger(__name__)

Config = TypeVar("Config", bound=Settings)
File = tuple[Path, dict[str, Any]]
"""A file and the mapping in it."""
COMMAND_LINE = Path("the command line")
"""Stands for the file of layers that the command line chooses. Their paths are relative to the working directory."""

RUN_PARTS = ("metrics.jsonl", "checkpoints", "driver.lock")
"""A folder that contains one of these is a run folder."""
OF_RUN = "tempflow"
"""The only key of a run's recipe that is not a setting. It records how the run was made."""


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, apply `key=value` overrides, and validate it.

    Raises:
        UserError: the recipe is wrong. The message names the file or override, the key, the value and, for an unknown
            key, the nearest valid one.
    """
    return load_with_sources(recipe, overrides)[0]


def load_with_sources(recipe: str, overrides: Sequence[str] = ()) -> tuple[RunConfig, Sources]:
    """Like `load_config`, and also return the source of each value that is not a default."""
    composed, source = _compose(recipe, overrides)
    return parse_config(RunConfig, composed.values, source, composed.sources), composed.sources


def load_mapping(values: dict[str, Any], source: Path) -> RunConfig:
    """The recipe that a mapping says, as if it were the text of the file `source`.

    Raises:
        UserError: as `load_config`.
    """
    layers, own = _choose([(source, values)])
    composed = Composition()
    for file, mapping in [*layers, *own]:
        composed.lay(mapping, file)
    return parse_config(RunConfig, composed.values, str(source), composed.sources)


def load_pool(recipe: str, overrides: Sequence[str] = ()) -> PoolSettings:
    """Read the settings of a recipe's reward pool: `scorers` and `serve`. The recipe need not contain any others.

    Raises:
        UserError: as `load_config`.
    """
    composed, source = _compose(recipe, overrides)
    of_pool = {key: value for key, value in composed.values.items() if key in PoolSettings.model_fields}
    return parse_config(PoolSettings, of_pool, source, composed.sources)


def _compose(recipe: str, overrides: Sequence[str]) -> tuple[Composition, str]:
    """Compose a recipe from its layers, its files and overrides. Also returns the path of its file."""
    folder = Path(recipe).parent if Path(recipe).name == RUN_RECIPE else Path(recipe)
    if any((folder / name).exists() for name in RUN_PARTS):
        path = folder / RUN_RECIPE
        files = [(path, _of_run(folder))]
    else:
        path = find_recipe(recipe)
        files = _read(path)
    make_importable(Path.cwd())
    on_top, values = _split(overrides)
    layers, own = _choose([*files, (COMMAND_LINE, on_top)])
    composed = Composition()
    for source, mapping in [*layers, *own]:
        composed.lay(mapping, source)
    if "name" not in composed.values:
        composed.lay({"name": path.stem}, path)
    for override in values:
        composed.set_key(override)
    return composed, str(path)


def _split(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Split overrides into those that choose layers, as a mapping, and the others.

    Among the others, those that choose a plan, a kernel or an objective come first.
    """
    layers, values = {}, []
    for text in overrides:
        key, _, value = text.partition("=")
        if key in LAYERS:
            layers[key] = load_yaml(value, f"`{text}`: the value")
        else:
            values.append(text)
    return layers, sorted(values, key=lambda text: text.partition("=")[0] not in NAMES)


def _choose(files: list[File]) -> tuple[list[File], list[File]]:
    """The files of the layers that recipes choose, and the recipes without the keys that choose them, the lowest first.

    A recipe's choice of a layer replaces the choice of the recipe below. If it is another layer, the keys of that kind
    (`LAYERS`) are also dropped from the recipes below.
    """
    chosen: dict[str, Path] = {}
    own: list[File] = []
    for source, mapping in files:
        for kind in [kind for kind in LAYERS if kind in mapping]:
            if not isinstance(name := mapping[kind], str):
                raise UserError(f"{source}: `{kind}` = {name!r}: it must be the name of a layer or a path to a file")
            layer = find_layer(kind, name, source.parent)
            if layer != chosen.get(kind):
                own = [(file, {k: v for k, v in below.items() if k not in LAYERS[kind]}) for file, below in own]
            chosen[kind] = layer
        own.append((source, {key: value for key, value in mapping.items() if key not in LAYERS}))
    return [file for kind in LAYERS if kind in chosen for file in _layer(chosen[kind], kind)], own


def _layer(path: Path, kind: str) -> list[File]:
    """The files of a layer. A method that comes with tempflow is a Python file, and its defaults are the layer."""
    if path.suffix == ".py":
        return [(path, {"method": path.stem, **find_method(path.stem).defaults})]
    return _read(path, kind)


def layer_values(kind: str, name: str) -> dict[str, Any]:
    """The keys and values of a layer, those of the layers that it extends included."""
    composed = Composition()
    for source, mapping in _layer(find_layer(kind, name), kind):
        composed.lay(mapping, source)
    return composed.values


def _of_run(folder: Path) -> dict[str, Any]:
    """The mapping of the recipe in a run folder, or in its newest checkpoint if config.yaml is torn.

    `name` and `output` are set to the folder's present place, since the folder may have been moved.

    Raises:
        UserError: neither has the recipe.
    """
    from system.run.checkpoint import Checkpoints

    file, raw = folder / RUN_RECIPE, None
    try:
        raw = read_mapping(file, "a recipe")
    except (UserError, OSError) as error:
        log.warning("%s; the recipe is read from the newest checkpoint instead", first_line(error))
    by = raw.pop(OF_RUN, None) if raw else None
    if raw is None or not isinstance(by, dict) or "run" not in by:  # its last key
        kept = Checkpoints(Folder.at(str(folder / "checkpoints")), keep=1).recipe()
        if kept is None:
            raise UserError(
                f"`{folder}` has no intact {RUN_RECIPE} and no checkpoint with the recipe of the run; give the recipe "
                "and overrides that the run began with, and checkpoint.folder=… if it was set"
            )
        raw = load_yaml(kept, f"the checkpoints in `{folder}`")
        by = raw.pop(OF_RUN, None)
    make_importable(*(by.get("folders") or []))
    return raw | {"name": folder.absolute().name, "output": str(folder.absolute().parent)}


def _read(path: Path, kind: str | None = None, children: tuple[Path, ...] = ()) -> list[File]:
    """A recipe, or a layer of a kind, after the files that it `extends`. Scorers beside these files can be imported.

    A recipe that extends a run takes its settings except `name` and `output`.
    """
    if path.resolve() in children:
        raise UserError(f"{path}: `extends` leads back to this file; remove it from one of them")
    if not path.is_relative_to(SHIPPED):
        make_importable(path.parent)
    raw = read_mapping(path, f"a {kind} layer" if kind else "a recipe")
    if raw.pop(OF_RUN, None):
        raw.pop("name", None)
        raw.pop("output", None)
    if kind and (inside := [key for key in LAYERS if key in raw]):
        raise UserError(
            f"{path}: a {kind} layer cannot choose layers, but this one has the key `{inside[0]}`; remove it"
        )
    parent = raw.pop("extends", None)
    if parent is None:
        return [(path, raw)]
    found = find_layer(kind, str(parent), path.parent) if kind else find_recipe(str(parent), path.parent)
    return [*_read(found, kind, (*children, path.resolve())), (path, raw)]


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        UserError: the file cannot be read or is not a mapping. The message names the file and `what` it should be.
    """
    raw = load_yaml(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path}: {what} must be a mapping of keys to values")
    return raw


def parse_config(model: type[Config], raw: dict[str, Any], source: str, sources: Sources | None = None) -> Config:
    """Validate a resolved mapping.

    Raises:
        UserError: a value is wrong. The message names the value's source, or `source` if that is not known.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error, model, raw, source, sources or {})) from error
