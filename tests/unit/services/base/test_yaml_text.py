"""YAML 1.2's core schema, keys once, and that what is written is read as the same."""

import math
import re

import pytest
import yaml

from services.base.errors import UserError
from services.base.yaml_text import dump_yaml, load_yaml
from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-2", 0.01),
        ("+1E3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("010", 10),
        ("-7", -7),
        ("0o10", 8),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("!!int '5'", 5),
        ("!!str 5", "5"),
        *[(text, text) for text in ("1:30", "yes", "No", "on", "off", "1_000", "2024-01-01", "0b11", "1e", "=", "nan")],
    ],
)
def test_plain_values_are_those_of_the_core_schema(text, value):
    read = load_yaml(f"key: {text}", "f")["key"]
    assert (read, type(read)) == (value, type(value))


def test_nan_and_merged_keys():
    assert math.isnan(load_yaml(".nan", "f"))
    assert load_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a", "f") == {
        "a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nname: a\nsteps: 3", r"mine\.yaml is not YAML: the key `steps` of line 3 is already in line 1"),
        ("a:\n  - {b: 1, 'b': 2}", "the key `b` of line 2 is already in line 2"),
        ("1: a\n0x1: b", "the key `1` of line 2 is already in line 1"),
        ("a: [1", r"mine\.yaml is not YAML: .*line 1"),
        ("a: !!int x", "`x` in line 1 has a tag but is not a valid int"),
        ("!!float [1]", "expected a scalar node"),
        ("a: !!timestamp 2024-01-01", "tag:yaml.org,2002:timestamp"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: " + "9" * 5000, "too many digits"),
        ("a: &a [*a]", "recursive"),
        ("[" * 5000, "nested too deeply"),
        ('\na: "\\ud800"', "line 2 contains half of a surrogate pair"),
        ('\na: "x\u2028y"', r"mine\.yaml, line 2: write U\+2028 as \\L between double quotes"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text, message):
    with pytest.raises(UserError, match=message) as refused:
        load_yaml(text, "mine.yaml")
    assert "\n" not in str(refused.value)


TEXTS = [
    *[
        "1e3",
        "1e-2",
        "010",
        "08",
        "yes",
        "No",
        "on",
        "1:30",
        "0o7",
        "0x1F",
        "1_000",
        "2024-01-01",
        "null",
        "",
        "~",
        "=",
    ],
    *["~", ".inf", ".nan", "-", "1.", "+1", "<<", "true", " x ", "a\nb", "\n", "# x", "a: b", "😀", "é", "\t"],
    *[
        "\ufeff",
        "a\u2028b",
        "\x85",
        "a\x85 b",
        "\u2029",
        "x\u00a0y",
        "1.e5",
        "{a}",
        "[a",
        "'",
        '"',
        "\\N",
        "long " * 30,
    ],
]
NUMBERS = [1e-5, 1e20, 1e16, 1e-300, 5e-324, 0.1, -2.0, math.inf, 10**30, -3, 8, True, False, None]


@pytest.mark.parametrize("value", [*TEXTS, *NUMBERS], ids=repr)
def test_what_is_written_is_read_as_the_same(value):
    tree = {"value": value, "list": [value, {"deep": value}], "keys": {value: 1}}
    text = dump_yaml(tree)
    for read in (load_yaml(text, "f"), yaml.safe_load(text)):
        assert read == tree
        assert type(read["value"]) is type(value)


def test_nothing_in_the_product_reads_or_writes_yaml_another_way():
    files = [file for room in ("system", "actors", "services") for file in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    others = {
        f"{file.relative_to(ROOT)}: {found}"
        for file in files
        for found in re.findall(r"yaml\.(?:safe_|full_|unsafe_)?(?:load|dump)\w*\(", file.read_text())
    }
    assert others == {"services/base/yaml_text.py: yaml.dump(", "system/manifests/manifests.py: yaml.dump_all("}
