"""The base of every room's settings: strict, immutable, and silent about nothing."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A pydantic model that refuses unknown keys, wrong kinds and later changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def name_or(default: str) -> Callable[[Any], Any]:
    """For a discriminated union: which member a mapping describes by its `name`, `default` where it has none."""
    return lambda value: value.get("name", default) if isinstance(value, dict) else getattr(value, "name", None)
