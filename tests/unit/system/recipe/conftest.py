"""A recipe with nothing but what is required."""

from functools import partial

import pytest

from tests.helpers.recipes import write_minimal


@pytest.fixture
def recipe(tmp_path):
    """Write the recipe with changes to its keys; returns its path."""
    return partial(write_minimal, tmp_path)
