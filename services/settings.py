"""The base of every room's settings: strict, immutable, and silent about nothing."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

CREDENTIALS = "credentials"
"""Type of the error whose message is the key that holds a URL with credentials: no message repeats its value."""


class Settings(BaseModel):
    """A pydantic model that refuses unknown keys, wrong kinds, later changes, and secrets where they can be seen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    @model_validator(mode="after")
    def _without_credentials(self) -> "Settings":
        """Settings are printed, logged and kept in run folders."""
        for name in type(self).model_fields:
            if any(_has_credentials(text) for text in _strings(getattr(self, name))):
                raise PydanticCustomError(CREDENTIALS, "{key}", {"key": name})
        return self


def _strings(value: object) -> Iterator[str]:
    """The texts in plain containers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _has_credentials(text: str) -> bool:
    if "://" not in text:
        return False
    try:
        return "@" in urlsplit(text).netloc
    except ValueError:  # it is no URL
        return False


def name_or(default: str) -> Callable[[Any], Any]:
    """For a discriminated union: which member a mapping describes by its `name`, `default` where it has none."""
    return lambda value: value.get("name", default) if isinstance(value, dict) else getattr(value, "name", None)
