"""A recipe with nothing but what is required."""

import pytest
import yaml

MINIMAL = {
    "steps": 2,
    "policy": {"model": "somewhere"},
    "scorers": [{"name": "size", "scorer": "jpeg_size"}],
    "data": {"train": "prompts.txt"},
}


@pytest.fixture
def recipe(tmp_path):
    """Write the recipe with changes to its keys; returns its path."""

    def write(**changes):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(MINIMAL | changes))
        return str(path)

    return write
