"""How a scorer calls a service outside of Ray, which may be unavailable for a while."""

from collections.abc import Callable
from typing import TypeVar

from services.base.errors import UserError
from services.base.patience import Away, patiently
from services.scoring.settings import ScorerSettings

T = TypeVar("T")

PATIENCE_S = 0.9 * ScorerSettings.model_fields["timeout_s"].default
"""The default of `patience_s`, the seconds for which a request is repeated while the service is away, starting or full.
The scorer gives up before the reward pool does, so that the pool learns the reason.
"""
LONGEST_PAUSE_S = 10.0
"""The longest pause between two requests, unless the service asks for a longer one. A service that is back therefore
gets a request within this time."""
PROBE_TIMEOUT_S = 10.0
"""The seconds for which `tempflow doctor` waits for an answer."""


def ask_outside(ask: Callable[[], T], patience_s: float) -> T:
    """Call `ask` again while it raises `Away`, and return its result.

    Raises:
        Away: `ask` still raises it after `patience_s`.
    """
    return patiently(ask, Away, patience_s, LONGEST_PAUSE_S)


def check_url(scorer: str, url: str) -> None:
    """Check that a text is an HTTP address.

    Raises:
        UserError: it is not.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"scorer {scorer}: url is `{url}`; give an http:// or https:// address")
