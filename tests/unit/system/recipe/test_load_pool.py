"""A recipe of a reward pool: what the file may say."""

import pytest

from services.base.errors import UserError
from system.recipe.load import load_pool


@pytest.mark.parametrize("name", ["row", "prompt", "image", "category", "model", "error"])
def test_a_scorer_is_not_named_like_a_column_beside_its_own(name, tmp_path):
    path = tmp_path / "pool.yaml"
    path.write_text(f"scorers:\n- {{name: {name}, scorer: jpeg_size}}\n")
    with pytest.raises(UserError, match=f"`scorers.0.name` = '{name}': the tables of scores already have a column"):
        load_pool(str(path))
