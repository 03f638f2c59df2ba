"""Makes one sentence about a mistake in a recipe from pydantic's errors."""

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from services.base.settings import CREDENTIALS
from system.recipe.find import FOLDERS
from system.recipe.model import RunConfig
from system.recipe.provenance import Key, Source, Sources, reached, source_of

Place = tuple[str | int, ...]


def explain(
    error: ValidationError, model: type[BaseModel], values: dict[str, Any], source: str, sources: Sources
) -> str:
    """The first problem as one sentence. Unknown keys come first: one may be the misspelt form of a missing key."""
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    kind, place = problem["type"], _place(values, problem["loc"])
    key = ".".join(map(str, place))
    found = _origin(sources, reached(values, place))
    origin = found or source
    if kind == CREDENTIALS:
        holder = f"{key}.{problem['msg']}".removeprefix(".")
        return f"{source}: `{holder}`: the URL contains credentials; give them in the environment or a file instead"
    if kind == "missing":
        return f"{origin}: `{'.'.join(map(str, (*place, problem['loc'][-1])))}` is missing"
    if kind == "value_error" and not key:
        return f"{origin}: {problem['ctx']['error']}"
    if kind == "extra_forbidden":
        origin = "an override" if isinstance(found, str) else origin  # the text of an override may hold a secret
        return f"{origin}: unknown key `{key}`; {_hint(problem['loc'], model)}"
    if kind == "union_tag_invalid":
        context = problem["ctx"]
        return f"{origin}: `{key}.name` = {context['tag']!r}: it must be one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{origin}: `{key}` = {problem['input']!r}: it must be a mapping; choose by name with {key}.name=…"
    said = str(problem["ctx"]["error"]) if kind == "value_error" else problem["msg"]
    return f"{origin}: `{key}` = {problem['input']!r}: {said[:1].lower()}{said[1:]}"


def _place(values: Any, loc: Place) -> Place:
    """The place of an error in the recipe: pydantic's location without missing keys and without the tags of unions."""
    found: list[str | int] = []
    for part in loc:
        if part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int):
            values = values[part]
            found.append(part)
    return tuple(found)


def _origin(sources: Sources, key: Key) -> Source | None:
    """The source of a value, or of the mapping or list that contains it. Of several sources, an override is chosen."""
    found = [source for known, source in sources.items() if key and key == known[: len(key)]]
    overrides = [source for source in found if isinstance(source, str)]
    return next(iter(overrides or found), source_of(sources, key))


def _hint(loc: Place, model: type[BaseModel]) -> str:
    """A suggestion of the key that the user meant instead of an unknown one."""
    *holder, last = (str(part) for part in loc if not isinstance(part, int))
    known = list(_settings(model))
    beside = [key[-1] for place, key in known if place[:-1] == tuple(holder)]
    if model is RunConfig and not holder:
        beside += FOLDERS
    elsewhere = [] if holder else [".".join(key) for _, key in known if key[-1] == last]
    close, far = (difflib.get_close_matches(last, beside, 1, cutoff) for cutoff in (0.6, 0.4))
    near = close or elsewhere or far
    return f"did you mean `{near[0]}`?" if near else f"the known keys are {', '.join(beside)}"


def _settings(kind: Any, place: Key = (), key: Key = ()) -> Iterator[tuple[Key, Key]]:
    """All settings in a type: each one's place in pydantic's errors, without indexes, and its key in a recipe."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield (*place, name), (*key, name)
            yield from _settings(field.annotation, (*place, name), (*key, name))
    elif get_origin(kind) is Annotated:
        inner, *metadata = get_args(kind)
        yield from _settings(inner, (*place, *(item.tag for item in metadata if isinstance(item, Tag))), key)
    else:
        for inner in get_args(kind):
            yield from _settings(inner, place, key)
