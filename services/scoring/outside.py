"""How a scorer asks a service outside of Ray, which may be away for a while."""

from collections.abc import Callable
from typing import TypeVar

from services.base.errors import UserError
from services.base.patience import Away, patiently
from services.scoring.settings import ScorerSettings

T = TypeVar("T")

PATIENCE_S = 0.9 * ScorerSettings.model_fields["timeout_s"].default
"""This is the default of `patience_s`: one question is asked again for so long while the service is away, starting or
full. The scorer gives up before the reward pool does, so that the pool learns why.
"""
LONGEST_PAUSE_S = 10.0
"""No pause between two questions is longer, unless the service asks for it, so its return is noticed this soon."""
PROBE_TIMEOUT_S = 10.0
"""`tempflow doctor` waits this long for an answer."""


def ask_outside(ask: Callable[[], T], patience_s: float) -> T:
    """What `ask` returns; it is called again while it raises `Away`.

    Raises:
        Away: it still does after `patience_s`.
    """
    return patiently(ask, Away, patience_s, LONGEST_PAUSE_S)


def check_url(scorer: str, url: str) -> None:
    """Refuse what is not an address of HTTP.

    Raises:
        UserError: as said.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"scorer {scorer}: url is `{url}`; give an http:// or https:// address")
