"""HTTP as a caller: a session that retries, and tokens that are never arguments."""

import os
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from services.errors import UserError

BUSY = (429, 502, 503, 504)
"""Answers after which the same request may be sent again."""


def session(token: str | None = None, attempts: int = 6) -> requests.Session:
    """A session that sends a request again when the connection breaks or the server is busy.

    Waits 0.5 s, 1 s, 2 s, … with jitter of up to half a second, or what `Retry-After` says. For requests that may be
    repeated only, as scoring is.
    """
    retry = Retry(
        total=attempts - 1,
        backoff_factor=0.5,
        backoff_jitter=0.5,
        status_forcelist=BUSY,
        allowed_methods=None,
        raise_on_status=False,
    )
    made = requests.Session()
    made.trust_env = False
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=retry))
    if token:
        made.headers["Authorization"] = f"Bearer {token}"
    return made


def read_token(file: str | None, variable: str = "TEMPFLOW_TOKEN") -> str | None:
    """A bearer token from a file, else from the environment, else None.

    Raises:
        UserError: the file is missing or empty.
    """
    if file is None:
        return os.environ.get(variable) or None
    path = Path(file).expanduser()
    token = path.read_text().strip() if path.is_file() else ""
    if not token:
        raise UserError(f"no token in `{file}`; write it there, or set {variable}")
    return token
