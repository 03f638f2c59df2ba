"""Imports run one way, and test modules share code only through tests/helpers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

LAYERS = ("services", "actors", "system")
"""Each layer may import itself and those before it."""
UNKNOWN_TO_THE_LOOP = ("ray", "torch", "system.launch", "system.local", "system.commands")
"""What the training loop does not know: it sees the roles as protocols."""


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_no_layer_above_it(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    for file in files:
        wrong = [name for name in imported(file) if within(name, above)]
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_the_training_loop_knows_the_roles_as_protocols_only():
    for file in (ROOT / "system" / "loop").glob("*.py"):
        wrong = [name for name in imported(file) if within(name, UNKNOWN_TO_THE_LOOP)]
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_no_test_module_imports_another():
    for file in (ROOT / "tests").rglob("*.py"):
        wrong = [name for name in imported(file) if within(name, ("tests",)) and not within(name, ("tests.helpers",))]
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}; move what they share to tests/helpers"
