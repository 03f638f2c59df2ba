"""The base class of all settings: strict and immutable."""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from services.base.errors import has_credentials

CREDENTIALS = "credentials"
"""The type of the error for a URL with credentials. Its message is only the key, so that no message has the secret."""


T = TypeVar("T")

Listed = Annotated[tuple[T, ...], Strict(False)]
"""A tuple that a recipe gives as a list, because YAML has no tuples."""


def _whole_gpus(share: float) -> float:
    if share > 1 and share != int(share):
        raise ValueError("Ray gives a process a fraction of one GPU or whole ones; set at most 1, or a whole number")
    return share


Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_gpus)]
"""GPUs of one process: a fraction of one GPU, or a whole number."""


class Settings(BaseModel):
    """A pydantic model that cannot be changed. It refuses unknown keys, wrong types (neither `true` nor `"3"` is a
    number), numbers that are not finite, and URLs with credentials.
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
        """Refuse URLs with credentials, because settings are printed, logged and kept in run folders."""
        for name in type(self).model_fields:
            if any(isinstance(leaf, str) and has_credentials(leaf) for leaf in _leaves(getattr(self, name))):
                raise PydanticCustomError(CREDENTIALS, "{key}", {"key": name})
        return self

    @model_validator(mode="after")
    def _finite(self) -> "Settings":
        """Refuse numbers that are not finite in containers of any value, such as a scorer's options.

        Pydantic does not check these.
        """
        for name in type(self).model_fields:
            if not all(math.isfinite(leaf) for leaf in _leaves(getattr(self, name)) if isinstance(leaf, float)):
                raise PydanticCustomError("finite_number", "{key} contains a number that is not finite", {"key": name})
        return self


def _leaves(value: object) -> Iterator[object]:
    """The values in nested mappings, lists and tuples."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def name_or(default: str) -> Callable[[Any], Any]:
    """The discriminator of a union: returns a function that gives a mapping's `name`, or `default` if it has none."""
    return lambda value: value.get("name", default) if isinstance(value, dict) else getattr(value, "name", None)
