"""One sentence for what is wrong with a recipe, made from pydantic's errors."""

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from actors.methods import AnyObjective
from actors.policy.settings import KernelSettings
from actors.rollout.plans.settings import PlanSettings
from services.base.settings import CREDENTIALS

TAGS = {
    get_args(member)[0].model_fields["name"].default
    for union in (PlanSettings, KernelSettings, AnyObjective)
    for member in get_args(get_args(union)[0])
}
"""Names of the members of unions, which stand in the places of pydantic's errors but not in a recipe's keys."""


def explain(error: ValidationError, model: type[BaseModel], source: str, overrides: dict[str, str]) -> str:
    """The first problem as one sentence; an unknown key first, which may be the one that is missing, misspelt."""
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    place = [part for part in problem["loc"] if part not in TAGS]
    key = ".".join(str(part) for part in place)
    origin = next((text for known, text in overrides.items() if f"{key}.".startswith(f"{known}.")), None)
    origin = origin or next((text for known, text in overrides.items() if known.startswith(f"{key}.")), source)
    if problem["type"] == CREDENTIALS:
        holder = f"{key}.{problem['msg']}".removeprefix(".")
        return f"{source}: `{holder}`: a URL holds credentials; give them in the environment or a file instead"
    if problem["type"] == "value_error" and not key:
        return f"{origin}: {problem['ctx']['error']}"
    if problem["type"] == "extra_forbidden":
        beside, last = _keys_beside(problem, model), str(place[-1])
        near = difflib.get_close_matches(last, beside, 1, cutoff=0.6)
        near = near or [key for key in _dotted(model) if key.endswith(f".{last}")][:1] if len(place) == 1 else near
        near = near or difflib.get_close_matches(last, beside, 1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(beside)}"
        origin = "an override" if origin in overrides.values() else origin  # whose value may be a secret
        return f"{origin}: unknown key `{key}`; {hint}"
    if problem["type"] == "missing":
        return f"{origin}: `{key}` is missing"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        return f"{origin}: `{key}.name` = {context['tag']!r}: it is one of {context['expected_tags']}"
    if problem["type"] == "union_tag_not_found":
        return f"{origin}: `{key}` = {problem['input']!r}: it is a mapping; choose by name, with {key}.name=…"
    said = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
    return f"{origin}: `{key}` = {problem['input']!r}: {said[:1].lower()}{said[1:]}"


def _dotted(model: Any, above: str = "") -> Iterator[str]:
    """The dotted keys of all settings below a model."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        for kind in (field.annotation, *get_args(field.annotation)):
            kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _dotted(kind, f"{above}{name}.")


def _keys_beside(problem: Any, model: Any) -> list[str]:
    """Valid keys of the settings that hold the key in question."""
    for part in problem["loc"][: len(problem["loc"]) - 1]:
        model = _descend(model, part)
    kinds = [model, *get_args(model)]
    found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return list(found[0].model_fields) if found else []


def _descend(model: Any, part: Any) -> Any:
    """The model class below `model` at a key, an index or a union's tag."""
    if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
        return model.model_fields[part].annotation
    options = [get_args(option)[0] if get_origin(option) is Annotated else option for option in get_args(model)]
    options = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    if isinstance(part, int):
        return options[0] if options else None
    return next((option for option in options if option.model_fields["name"].default == part), model)
