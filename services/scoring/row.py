"""A prompt's row: the other columns of its line in the prompt file, for the scorers that ask for them."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from services.base.errors import first_line

Row = Mapping[str, Any]
"""Values by column, of the kinds that JSON has: text, numbers, booleans, None, and lists and mappings of them."""

MAX_DEPTH = 8
"""The most levels of a row: the row itself, and lists and mappings inside each other."""


class BadRow(Exception):
    """A row that no scorer gets. The message says why, such as "its row is not a JSON object"."""


def read_row(text: bytes, max_bytes: int) -> Row:
    """Read a row from JSON; null is an empty row. The size is checked first, because values take more memory than text.

    Raises:
        BadRow: the text is longer than `max_bytes`, or is not a JSON object, or the object is too deep.
    """
    if len(text) > max_bytes:
        raise BadRow(f"its row has {len(text)} bytes; at most {max_bytes} are allowed")
    try:
        row = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"its row is not JSON: {first_line(error)}") from error
    if row is None:
        return {}
    if not isinstance(row, dict):
        raise BadRow("its row is not a JSON object")
    return checked_row(row)


def checked_row(row: Row) -> Row:
    """The row with None in place of NaN and infinity, which JSON does not have.

    Raises:
        BadRow: the row is too deep.
    """
    return {column: _checked(value, MAX_DEPTH - 1) for column, value in row.items()}


def _checked(value: Any, levels: int) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, dict | list):
        return value
    if not levels:
        raise BadRow(f"its row has more than {MAX_DEPTH} levels of lists and mappings")
    if isinstance(value, dict):
        return {key: _checked(member, levels - 1) for key, member in value.items()}
    return [_checked(member, levels - 1) for member in value]
