"""Tables that are written by hand list what the code has: the built-in scorers with their options, and the layers."""

import inspect
import re
from importlib import import_module

import pytest

from services.scoring.scorer import BUILT_IN
from tests.helpers.paths import ROOT


def rows(page: str) -> list[list[str]]:
    """The cells of a page's first table, without its head."""
    table = re.search(r"(?:^\|.*\n)+", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    assert table
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[0].splitlines()[2:]]


REFUSED = {"metadata", "rule"}
"""Options of earlier versions, which a constructor takes only to say so."""

OPTIONS = {name.strip("`"): options for name, _, options in rows("scorers.md")}


def options_of(scorer: str) -> set[str]:
    """The names in a scorer's cell; "as `clip`" stands for those of that row."""
    if like := re.match(r"as `(\w+)`", OPTIONS[scorer]):
        return options_of(like[1])
    return set(re.findall(r"`(\w+)`", OPTIONS[scorer]))


def test_every_built_in_scorer_has_a_row():
    assert OPTIONS.keys() == {*BUILT_IN, "package.module:Class"}


@pytest.mark.parametrize("scorer", BUILT_IN)
def test_a_row_lists_the_options_of_the_constructor(scorer):
    module, _, made_by = BUILT_IN[scorer].partition(":")
    taken = inspect.signature(getattr(import_module(module), made_by)).parameters.keys()
    assert options_of(scorer) == taken - REFUSED


def test_the_table_of_layers_is_complete():
    for kind, names in rows("recipes.md"):
        folder, *listed = re.findall(r"`([\w/]+)`", names)
        suffix = "*.py" if folder.startswith("actors") else "*.yaml"
        files = (ROOT if folder.startswith("actors") else ROOT / "configs") / folder
        assert sorted(listed) == sorted(path.stem for path in files.glob(suffix) if path.stem != "__init__"), kind
