"""The base of every room's settings: strict, immutable, and silent about nothing."""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from services.base.errors import has_credentials

CREDENTIALS = "credentials"
"""Type of the error whose message is the key that holds a URL with credentials: no message repeats its value."""


T = TypeVar("T")

Listed = Annotated[tuple[T, ...], Strict(False)]
"""A list of a recipe; YAML has no tuples."""


def _whole_gpus(share: float) -> float:
    if share > 1 and share != int(share):
        raise ValueError("Ray gives a fraction of one GPU or whole ones; give at most 1, or a whole number")
    return share


Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_gpus)]
"""GPUs of one process: a fraction of one, or a whole number."""


class Settings(BaseModel):
    """A pydantic model that refuses unknown keys, wrong kinds (`true` is no number, `"3"` neither), later changes,
    numbers that are not finite, and secrets where they can be seen.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="after")
    def _without_credentials(self) -> "Settings":
        """Settings are printed, logged and kept in run folders."""
        for name in type(self).model_fields:
            if any(isinstance(leaf, str) and has_credentials(leaf) for leaf in _leaves(getattr(self, name))):
                raise PydanticCustomError(CREDENTIALS, "{key}", {"key": name})
        return self

    @model_validator(mode="after")
    def _finite(self) -> "Settings":
        """Numbers in containers of any kind of value, such as a scorer's options, which pydantic lets pass."""
        for name in type(self).model_fields:
            if not all(math.isfinite(leaf) for leaf in _leaves(getattr(self, name)) if isinstance(leaf, float)):
                raise PydanticCustomError("finite_number", "{key} holds a number that is not finite", {"key": name})
        return self


def _leaves(value: object) -> Iterator[object]:
    """The values in plain containers."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def name_or(default: str) -> Callable[[Any], Any]:
    """For a discriminated union: which member a mapping describes by its `name`, `default` where it has none."""
    return lambda value: value.get("name", default) if isinstance(value, dict) else getattr(value, "name", None)
