"""HTTP as a caller: a session that retries, and tokens that are never arguments."""

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
"""Answers after which the same request may be sent again."""
GONE = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
"""The same request may be sent again after these errors: no connection, no answer in time, or half an answer."""
CONNECT_S = 10.0
"""A connection must be made in this time; the answer may take longer."""


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


def retry_after_s(answer: requests.Response) -> float:
    """The seconds that an answer asks to wait for before the next request; 0 if it names none."""
    try:
        return Retry().parse_retry_after(answer.headers.get("Retry-After", "0"))
    except InvalidHeader:
        return 0.0


def read_token(file: str | None, variable: str = "TEMPFLOW_TOKEN") -> str | None:
    """A bearer token from a file, else from the environment, else None.

    Raises:
        UserError: the file is missing, empty or not text, or the token is not one line of ASCII; does not repeat it.
    """
    if file is None:
        token, source = os.environ.get(variable, "").strip(), variable
        if not token:
            return None
    else:
        path, source = Path(file).expanduser(), f"`{file}`"
        token = read_text(path).strip() if path.is_file() else ""
        if not token:
            raise UserError(f"no token in {source}; write it there, or set {variable}")
    if not re.fullmatch("[ -~]+", token):
        raise UserError(f"the token in {source} is not one line of ASCII characters, which a header needs; correct it")
    return token
