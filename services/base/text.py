"""Reads the user's text files, always as UTF-8 and with the same rule for newlines."""

import re
from pathlib import Path

from services.base.errors import UserError

NEWLINE = re.compile(r"\r\n|\n|\r")
"""A newline. `str.splitlines` would also split at U+2028, U+0085, form feeds and others, which a prompt may contain."""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Raises:
        UserError: the file cannot be read, or it is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"`{path}` cannot be read ({error.strerror}); correct its path or its permissions") from error
    return decode(data, str(path))


def decode(data: bytes, source: str) -> str:
    """The text of UTF-8 bytes, without their byte order mark.

    Raises:
        UserError: the bytes are not UTF-8, or contain NUL, as UTF-16 without a byte order mark does.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else f"not UTF-8 (line {_line(error)})"
        raise UserError(f"`{source}` is {kind}; save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"`{source}` contains NUL characters, as UTF-16 and binary files do; save it as UTF-8")
    return text


def _line(error: UnicodeDecodeError) -> int:
    """The number of the line that cannot be decoded."""
    return error.object.count(b"\n", 0, error.start) + 1


def split_lines(text: str) -> list[str]:
    """Split a text into lines. Only newlines (of Unix, Windows or the old Mac) end a line."""
    return NEWLINE.split(text)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8. JSON and YAML can contain half of a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
