"""The table of what each recipe needs is what `tempflow plan` says."""

import pytest

from docs.hardware import HEAD, PAGE, page, recipes
from system.recipe.load import load_config


def test_the_page_has_a_line_for_each_recipe_with_gpus():
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    assert [line.split("|")[1].strip() for line in text.removeprefix(HEAD).splitlines()] == recipes()


def test_the_recipes_that_lose_more_than_a_fifth_of_their_gpus_are_those_that_the_page_explains():
    rows = [line.split("|")[1:] for line in PAGE.read_text().removeprefix(HEAD).splitlines()]
    wasteful = {name.strip() for name, *_, waits, _, _, _, _ in rows if float(waits.strip(" %")) > 20}
    explained = {name for name in recipes() if load_config(name).scorers[0].name in ("hpsv3", "geneval")}
    assert wasteful == explained - {"flux_hpsv3_8gpu"}


@pytest.mark.slow
def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run python -m docs.hardware"
