"""Composes a recipe: layers at the bottom, recipes above them, and `key=value` overrides on top."""

from collections.abc import Sequence
from typing import Any

from actors.methods import DEFAULT_METHOD, find_method
from services.base.errors import UserError
from services.base.yaml_text import load_yaml
from system.recipe.provenance import Key, Source, Sources, leaves, nested, reached

LAYERS: dict[str, tuple[str, ...]] = {
    "model": (),
    "method": ("plan", "kernel", "advantage", "objective"),
    "rewards": ("scorers", "reward"),
    "hardware": (),
}
"""The kinds of layers, the lowest first, each with the keys that belong to its layer.

When a recipe chooses another layer of a kind, the values that the recipes below it give to these keys are dropped."""
DEFAULTS = find_method(DEFAULT_METHOD).defaults
NAMELESS = {key: DEFAULTS[key]["name"] for key in ("plan", "kernel", "objective")}
"""The name that a plan, kernel or objective has by default."""
NAMES = {f"{key}.name" for key in NAMELESS}
"""Keys that choose a plan, a kernel or an objective. A new choice drops the other keys of the old one."""
SCORERS = "scorers"
"""The key of the list whose items can be changed by name."""


class Composition:
    """A recipe while it is composed: its values so far and the source of each."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: Sources = {}

    def lay(self, above: dict[str, Any], source: Source) -> None:
        """Lay a file's mapping over the values. Scorers may be a list, or a mapping from names to changes."""
        laid = set(leaves(above))
        if isinstance(changes := above.get(SCORERS), dict):
            above = above | {SCORERS: change_scorers(self.values.get(SCORERS), changes, f"{source}: ")}
        self.values = lay_over(self.values, above)
        self._trace(laid, source)

    def set_key(self, override: str) -> None:
        """Set one dotted key. A scorer is chosen by its name or by its place in the list.

        Raises:
            UserError: the override does not have the form key=value, or its key cannot be set.
        """
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"`{override}`: an override has the form key=value, such as learner.lr=1e-4")
        value, parts = load_yaml(text, f"`{override}`: the value"), key.split(".")
        changes = value if key == SCORERS else {parts[-1]: value}
        if parts[0] == SCORERS and len(parts) <= 2 and isinstance(changes, dict) and not parts[-1].isdigit():
            self.lay({SCORERS: changes}, override)
        else:
            _set(self.values, parts, value, override)
            self._trace(set(leaves(nested(reached(self.values, parts), value))), override)

    def _trace(self, laid: set[Key], source: Source) -> None:
        """Record the source of the values that a file or an override has set. The other values keep their source."""
        self.sources = {key: source if key in laid else self.sources.get(key, source) for key in leaves(self.values)}


def lay_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another. Mappings inside are merged key by key; any other value, also a list, is replaced.

    A mapping with another `name` replaces the old one entirely: two plans, kernels or objectives share no keys.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            name = old.get("name", NAMELESS.get(key))
            value = lay_over(old, value) if value.get("name", name) == name else value
        merged[key] = value
    return merged


def change_scorers(scorers: Any, changes: dict[str, Any], where: str) -> list[Any]:
    """Change scorers by name, and return the new list.

    A mapping is laid over the scorer of that name. If there is none, the mapping adds it and needs the key `scorer`.
    Null removes the scorer.

    Raises:
        UserError: there is no scorer of that name, or the change is not a mapping. The message begins with `where`.
    """
    changed = list(scorers) if isinstance(scorers, list) else []
    for name, change in changes.items():
        place = _place(changed, name)
        if not isinstance(change, dict | None):
            raise UserError(
                f"{where}`scorers.{name}` must be a mapping of keys to values, or null to remove the scorer"
            )
        if place is None and change and "scorer" in change:
            changed.append({"name": name} | change)
        elif place is None:
            raise UserError(f"{where}{_no_scorer(changed, name)}; to add one, give its key `scorer`")
        elif change is None:
            del changed[place]
        else:
            changed[place] = lay_over(changed[place], change)
    return changed


def _set(values: dict[str, Any], parts: Sequence[str], value: Any, override: str) -> None:
    node: Any = values
    *parents, last = parts
    for i, part in enumerate(parents):
        slot = _slot(node, part, override, parents[:i])
        node = node.setdefault(slot, {}) if isinstance(node, dict) else node[slot]
    slot = _slot(node, last, override, parents)
    if ".".join(parts) in NAMES and value != node.get("name", NAMELESS[parents[0]]):
        node.clear()
    node[slot] = value


def _slot(node: Any, part: str, override: str, above: Sequence[str]) -> str | int:
    """The key or index that a part of a dotted key names."""
    if isinstance(node, dict):
        return part
    if isinstance(node, list) and part.isascii() and part.isdigit() and int(part) < len(node):
        return int(part)
    if isinstance(node, list) and list(above) == [SCORERS] and not part.isdigit():
        if (place := _place(node, part)) is not None:
            return place
        add = f'to add one, write scorers.{part}="{{scorer: …}}"'
        raise UserError(f"`{override}`: {_no_scorer(node, part)}; {add}")
    raise UserError(
        f"`{override}`: `{'.'.join(above)}` has no `{part}` to set; `tempflow config RECIPE` shows the keys"
    )


def _place(scorers: Sequence[Any], name: str) -> int | None:
    """The index of the scorer of a name."""
    names = [scorer.get("name") if isinstance(scorer, dict) else None for scorer in scorers]
    return names.index(name) if name in names else None


def _no_scorer(scorers: Sequence[Any], name: str) -> str:
    names = ", ".join(str(scorer["name"]) for scorer in scorers if isinstance(scorer, dict) and "name" in scorer)
    return f"there is no scorer `{name}`; the scorers are {names or 'none'}"
