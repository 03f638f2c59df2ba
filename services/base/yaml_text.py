"""Reads and writes YAML with the core schema of YAML 1.2, and refuses a key that appears twice.

PyYAML follows YAML 1.1, which has surprises: `1e-2` is text, `010` is 8, `1:30` is 90 and `no` is false.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from services.base.errors import UserError
from services.base.text import is_unicode

TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
PLAIN: dict[str, tuple[str, str]] = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
"""The kinds of plain scalars: the form of each, and the characters that it can begin with (`\\0` means that it can be
empty)."""
BREAKS = {"\x85": "\\N", "\u2028": "\\L", "\u2029": "\\P"}
"""Characters that are line breaks in YAML 1.1 but not in 1.2, each with its escape between double quotes in both."""

BEGINS_PLAINLY = re.compile("[A-Za-z/]")
"""No number, date or special sign begins with these characters in any version of YAML."""
WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Words that some readers take for booleans or null, in lower or upper case. Kubernetes reads `y` as true."""


class _Loader(yaml.SafeLoader):
    """Loads YAML 1.2's core schema and the merge key.

    It refuses a mapping with the same key twice, and a value that contains itself.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.deep_construct = True  # children before parents, so that PyYAML notices a value that contains itself

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # the constructor will refuse it, because it cannot be a key of a dict
            key = key_node.value if key_node.tag == MERGE else self.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise _Refused(f"the key `{key}` of line {line} is already in line {lines[key]}; remove one")
            lines[key] = line
        return node


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in (None, f"{TAG}map", f"{TAG}seq")
}


class _Refused(yaml.YAMLError):
    """Well-formed YAML that the project does not accept."""


def _core(loader: _Loader, kind: str, node: yaml.ScalarNode) -> str:
    """The text of a scalar of this kind, which its form or a tag such as `!!int` gives it."""
    text = str(loader.construct_scalar(node))
    if not re.fullmatch(PLAIN[kind][0], text):
        raise _Refused(f"`{text}` in line {node.start_mark.line + 1} has a tag but is not a valid {kind}")
    return text


def _null(loader: _Loader, node: yaml.ScalarNode) -> None:
    _core(loader, "null", node)


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    return _core(loader, "bool", node).lower() == "true"


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = _core(loader, "int", node)
    try:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    except ValueError as error:
        raise _Refused(f"the number in line {node.start_mark.line + 1} has too many digits") from error


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = _core(loader, "float", node).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _str(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = str(loader.construct_scalar(node))
    if not is_unicode(text):
        raise _Refused(f"the text in line {node.start_mark.line + 1} contains half of a surrogate pair")
    return text


class Dumper(yaml.SafeDumper):
    """PyYAML's dumper, with quotes around each text that a reader of YAML 1.1 or 1.2 could take for another type."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None
        if not data.isprintable():
            style = '"'
        elif not BEGINS_PLAINLY.match(data) or data.lower() in WORDS:
            style = "'"
        return self.represent_scalar(f"{TAG}str", data, style=style)


Dumper.add_representer(str, Dumper.represent_str)


for _kind, (_form, _first) in PLAIN.items():
    _whole, _starts = re.compile(f"^(?:{_form})$"), ["" if start == "\0" else start for start in _first]
    _Loader.add_implicit_resolver(TAG + _kind, _whole, _starts)
for _kind, _make in {"null": _null, "bool": _bool, "int": _int, "float": _float, "str": _str}.items():
    _Loader.add_constructor(TAG + _kind, _make)


def load_yaml(text: str, source: str) -> Any:
    """The value of a YAML document.

    Raises:
        UserError: the text is not YAML, or has a key twice. The message begins with `source`.
    """
    if found := re.search("|".join(BREAKS), text):
        line, code = text.count("\n", 0, found.start()) + 1, f"U+{ord(found[0]):04X}"
        raise UserError(f"{source}, line {line}: write {code} as {BREAKS[found[0]]} between double quotes")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}; correct it") from error
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply; flatten it") from error


def dump_yaml(value: Any) -> str:
    """Write a value as YAML. `load_yaml` reads the same value back."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
