"""The base of every room's settings: strict, immutable, and silent about nothing."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A pydantic model that refuses unknown keys, wrong kinds and later changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
