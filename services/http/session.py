"""HTTP for callers: a session that retries, and bearer tokens, which are never command-line arguments."""

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


def retry_after_s(answer: requests.Response) -> float:
    """The seconds to wait before the next request, from the answer's `Retry-After`; 0 if it has none."""
    try:
        return Retry().parse_retry_after(answer.headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0.0


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
