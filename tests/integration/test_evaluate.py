"""`tempflow eval` on a real Ray."""

import pyarrow.parquet as pq
import pytest

from tests.helpers.learners import random_adapter


@pytest.mark.slow
def test_scores_on_ray_are_those_of_one_process(recipe, sd3_folder, tempflow, in_process, ray_head, tmp_path):
    given = ("eval", recipe, "--adapter", random_adapter(sd3_folder, tmp_path / "lora"))
    for done in (
        tempflow(*given, "--output", "ray.parquet", address=ray_head.address),
        in_process(*given, "--local", "--output", "local.parquet"),
    ):
        assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "ray.parquet") == pq.read_table(tmp_path / "local.parquet")
