"""HTTP for callers: a session that retries, and bearer tokens, which are never command-line arguments."""

import math
import os
import re
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from services.base.errors import UserError
from services.base.text import read_text

BUSY = (429, 502, 503, 504)
"""The HTTP statuses after which the same request may be sent again."""
GONE = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
"""The errors after which the same request may be sent again: no connection, no answer in time, or half an answer."""
CONNECT_S = 10.0
"""Seconds within which a connection must be made. The answer may take longer."""
LONGEST_PAUSE_S = 3600.0


def session(token: str | None = None, attempts: int = 6) -> requests.Session:
    """A session that sends a request again when the connection breaks or the server is busy.

    It waits 0.5 s, 1 s, 2 s, … with jitter of up to 0.5 s, or as long as `Retry-After` says. Use it only for requests
    that may safely be repeated, such as scoring.
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


def retry_after_s(header: str | None) -> float:
    """The seconds to wait before the next request, from the value of `Retry-After`; at most `LONGEST_PAUSE_S`.

    It is a number of seconds or a date (RFC 9110, 10.2.3). Some services send fractions of a second, which count as
    well. It is 0 for a date that is over, for other texts, and without a header.
    """
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = Retry().parse_retry_after(str(header))
        except InvalidHeader:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_PAUSE_S) if math.isfinite(seconds) else 0.0


def read_token(file: str | None, variable: str = "TEMPFLOW_TOKEN") -> str | None:
    """Read a bearer token from a file or, if no file is given, from the environment; None if that has none.

    Raises:
        UserError: the file is missing, empty or not text, or the token is not one line of ASCII. The message does not
            contain the token.
    """
    if file is None:
        token, source = os.environ.get(variable, "").strip(), variable
        if not token:
            return None
    else:
        path, source = Path(file).expanduser(), f"`{file}`"
        token = read_text(path).strip() if path.is_file() else ""
        if not token:
            raise UserError(f"no token in {source}; write the token there, or set {variable} instead")
    if not re.fullmatch("[ -~]+", token):
        raise UserError(
            f"the token in {source} must be one line of ASCII characters to be sent in a header; correct it"
        )
    return token
