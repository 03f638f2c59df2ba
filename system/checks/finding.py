"""What a check finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from services.base.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One line about one thing."""

    level: Literal["ok", "warning", "problem"]
    """A warning may be fine; with a problem, a run on this machine fails."""
    what: str
    """The thing in a word or two."""
    says: str
    """The state of the thing; for a warning or a problem, a sentence that ends with the fix."""


def tried(what: str, look: Callable[[], str]) -> Finding:
    """The finding of a look that returns the state of a thing, or raises a UserError as its problem."""
    try:
        return Finding("ok", what, look())
    except UserError as error:
        return Finding("problem", what, str(error))
