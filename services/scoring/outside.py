"""How a scorer asks a service outside of Ray, which may be away for a while."""

from collections.abc import Callable
from typing import TypeVar

from services.errors import UserError
from services.patience import Away, patiently
from services.scoring.settings import ScorerSettings

T = TypeVar("T")

PATIENCE_S = 0.9 * ScorerSettings.model_fields["timeout_s"].default
"""The default of `patience_s`: for how long one question is asked again while the service is away, starting or full.
The scorer gives up before the reward pool does, so that the pool learns why.
"""
LONGEST_PAUSE_S = 10.0
"""Between two questions, unless the service asks for more: it is noticed this soon after its return."""
PROBE_TIMEOUT_S = 10.0
"""For one answer when `tempflow doctor` asks."""


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
