"""The table of what each recipe needs is what `tempflow plan` says."""

import pytest

from docs.hardware import HEAD, PAGE, page, recipes


def test_the_page_has_a_line_for_each_recipe_with_gpus():
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    assert [line.split("|")[1].strip() for line in text.removeprefix(HEAD).splitlines()] == recipes()


@pytest.mark.slow
def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run python -m docs.hardware"
