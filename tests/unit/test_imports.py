"""What test modules share lies in tests/helpers: none of them imports another."""

import ast

from tests.helpers.paths import ROOT

TESTS = ROOT / "tests"


def test_no_test_module_imports_another():
    for file in TESTS.rglob("*.py"):
        imported = [
            node.module or "" for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        wrong = [name for name in imported if name.startswith("tests") and not name.startswith("tests.helpers")]
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}; move what they share to tests/helpers"
