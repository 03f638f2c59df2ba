"""The result of a check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from services.base.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One line about one part of the machine or the recipe."""

    level: Literal["ok", "warning", "problem"]
    """With a problem, a run on this machine fails. With a warning, it may work."""
    what: str
    """The name of the part, in one or two words."""
    says: str
    """The state of the part; for a warning or a problem, a sentence that ends with the fix."""


def tried(what: str, look: Callable[[], str]) -> Finding:
    """Call `look`, and make a finding of the state that it returns or of the UserError that it raises."""
    try:
        return Finding("ok", what, look())
    except UserError as error:
        return Finding("problem", what, str(error))
