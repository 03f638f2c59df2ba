"""Laying mappings over each other: a recipe over the one that it extends, and `key=value` overrides over both."""

from collections.abc import Sequence
from typing import Any

from actors.methods import DEFAULT_METHOD, find_method
from services.base.errors import UserError
from services.base.yaml_text import load_yaml

DEFAULTS = find_method(DEFAULT_METHOD).defaults
NAMELESS = {key: DEFAULTS[key]["name"] for key in ("plan", "kernel", "objective")}
"""What a mapping without a name is."""
NAMES = {f"{key}.name" for key in NAMELESS}
"""Keys that choose a plan, a kernel or an objective: another one shares no keys with the one before."""


def lay_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; any other value of `above`, a list too, takes the place of that below.

    So does a mapping with another `name`: another plan, kernel or objective shares no keys with the old one.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            name = old.get("name", NAMELESS.get(key))
            value = lay_over(old, value) if value.get("name", name) == name else value
        merged[key] = value
    return merged


def set_key(raw: dict[str, Any], override: str) -> str:
    """Set one dotted key; returns the key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"`{override}`: an override has the form key=value, such as learner.lr=1e-4")
    node: Any = raw
    *parents, last = key.split(".")
    for place, part in enumerate(parents):
        slot = _slot(node, part, override, parents[:place])
        node = node.setdefault(slot, {}) if isinstance(node, dict) else node[slot]
    slot, value = _slot(node, last, override, parents), load_yaml(text, f"`{override}`: the value")
    if key in NAMES and value != node.get("name", NAMELESS[parents[0]]):
        node.clear()
    node[slot] = value
    return key


def _slot(node: Any, part: str, override: str, above: Sequence[str]) -> str | int:
    """The key or index that a part of a dotted key names."""
    if isinstance(node, dict):
        return part
    if isinstance(node, list) and part.isascii() and part.isdigit() and int(part) < len(node):
        return int(part)
    raise UserError(f"`{override}`: `{'.'.join(above)}` has no `{part}` to set")
