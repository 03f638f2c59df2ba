"""Rows from untrusted JSON and from files."""

import json

import pytest

from services.scoring.row import MAX_DEPTH, BadRow, checked_row, read_row


def nested(levels: int) -> str:
    """A row of so many levels, itself included."""
    return '{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def test_a_row_is_read_as_json():
    row = {"count": 2, "text": "é", "include": [{"class": "cup", "color": None}], "exact": True, "weight": 0.5}
    assert read_row(json.dumps(row).encode(), 999) == row
    assert read_row(b"null", 999) == {}
    assert read_row(nested(MAX_DEPTH).encode(), 999)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a": "bcdef"}', "has 14 bytes; at most 13 are allowed"),
        (b"[1, 2]", "is not a JSON object"),
        (b'"text"', "is not a JSON object"),
        (b"", "is not JSON"),
        (b'{"a": NaN}', "is not JSON"),
        (b'{"a": 1e999}', "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON"),
    ],
)
def test_what_is_not_a_row_is_refused_with_the_reason(text, why):
    with pytest.raises(BadRow, match=f"^its row {why}"):
        read_row(text, 13 if "13" in why else 99)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 900, 100_000])
def test_a_deep_row_is_refused(levels):
    with pytest.raises(BadRow, match=r"more than 8 levels|recursion depth"):
        read_row(nested(levels).encode(), 10**6)


def test_numbers_that_json_does_not_have_are_none():
    nan, infinity = float("nan"), float("inf")
    assert checked_row({"a": nan, "b": [1.5, {"c": -infinity}], "d": 2}) == {"a": None, "b": [1.5, {"c": None}], "d": 2}
