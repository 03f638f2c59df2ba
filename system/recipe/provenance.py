"""Tracks the source of each value of a recipe by the value's place."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Key = tuple[str, ...]
"""The place of a value: the keys that lead to it. An item of a list is identified by its name, or else its index."""
Source = Path | str
"""A file, or the text of an override."""
Sources = dict[Key, Source]
"""The source of each value. A value without a source is a default."""


def leaves(value: Any, above: Key = ()) -> Iterator[Key]:
    """The places of the values in mappings and lists. An empty mapping or list counts as a value."""
    below = items_of(value)
    if not below:
        yield above
    for name, item in below:
        yield from leaves(item, (*above, name))


def items_of(value: Any) -> list[tuple[str, Any]]:
    """The items of a mapping or a list, each with its name."""
    if isinstance(value, dict):
        return [(str(key), item) for key, item in value.items()]
    return [(_name(item, i), item) for i, item in enumerate(value)] if isinstance(value, list) else []


def _name(item: Any, index: int) -> str:
    named = isinstance(item, dict) and isinstance(item.get("name"), str)
    return item["name"] if named else str(index)


def reached(value: Any, parts: Sequence[str | int]) -> Key:
    """The place that keys, indexes and names lead to. Parts that lead nowhere are left out."""
    found: list[str] = []
    for part in map(str, parts):
        below = items_of(value)
        names = dict(below)
        place = below[int(part)][0] if isinstance(value, list) and part.isdigit() and int(part) < len(below) else part
        if place in names:
            found.append(place)
            value = names[place]
    return tuple(found)


def nested(key: Key, value: Any) -> Any:
    """Wrap a value in the mappings that lead to its place."""
    for part in reversed(key):
        value = {part: value}
    return value


def source_of(sources: Sources, key: Key) -> Source | None:
    """The source of the value at a place, or of the mapping or list that contains it."""
    return next((sources[key[:n]] for n in range(len(key), 0, -1) if key[:n] in sources), None)
