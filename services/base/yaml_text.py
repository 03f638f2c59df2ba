"""YAML as this project reads and writes it: the core schema of YAML 1.2, and each key once.

PyYAML follows YAML 1.1, which surprises: `1e-2` is text, `010` is 8, `1:30` is 90 and `no` is false.
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
"""What a plain scalar is: its form, and the characters that it can begin with (`\\0` stands for no character)."""
BREAKS = {"\x85": "\\N", "\u2028": "\\L", "\u2029": "\\P"}
"""These are line breaks in YAML 1.1 and none in 1.2; the values are how both write them between double quotes."""

BEGINS_PLAINLY = re.compile("[A-Za-z/]")
"""No number or date begins so in any version of YAML, nor do its signs."""
WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
"""Some reader takes these for booleans or for null, in lower or upper case: Kubernetes' own reads `y` as true."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema and the merge key. A key that stands twice in a mapping is refused, and so is a value that
    holds itself.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.deep_construct = True  # children before parents, which is how PyYAML notices a value that holds itself

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # the constructor refuses it, since Python cannot look it up
            key = key_node.value if key_node.tag == MERGE else self.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise _Refused(f"the key `{key}` of line {line} is in line {lines[key]} already; remove one")
            lines[key] = line
        return node


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in (None, f"{TAG}map", f"{TAG}seq")
}


class _Refused(yaml.YAMLError):
    """This is well-formed YAML that the project does not read."""


def _core(loader: _Loader, kind: str, node: yaml.ScalarNode) -> str:
    """The text of a scalar that is of this kind, by its form or by a tag such as `!!int`."""
    text = str(loader.construct_scalar(node))
    if not re.fullmatch(PLAIN[kind][0], text):
        raise _Refused(f"`{text}` in line {node.start_mark.line + 1} has a tag and is no {kind}")
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
        raise _Refused(f"the text in line {node.start_mark.line + 1} holds half of a surrogate pair")
    return text


class Dumper(yaml.SafeDumper):
    """PyYAML's, with quotes around each text that any reader of YAML 1.1 or 1.2 could take for something else."""

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
        UserError: it is not YAML, or has a key twice; begins with `source`.
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
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{source} is nested too deeply") from error


def dump_yaml(value: Any) -> str:
    """A value as YAML, which `load_yaml` reads as the same value."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
