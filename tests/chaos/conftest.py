"""The live Ray and tiny recipe of the integration tests, and an undisturbed run to hold the disturbed ones against."""

import pytest

from tests.helpers.command_line import tempflow
from tests.helpers.disturbed_runs import Run
from tests.helpers.ray_head import ray_head
from tests.helpers.recipes import tiny_recipe

__all__ = ["ray_head", "tempflow"]


@pytest.fixture(scope="session")
def undisturbed(sd3_folder, ray_head, tmp_path_factory):
    """A run of these overrides that nothing happens to, and the seconds it took; each is made once."""
    recipe, made = tiny_recipe(sd3_folder, tmp_path_factory.mktemp("undisturbed")), {}

    def make(*overrides: str) -> tuple[Run, float]:
        if overrides not in made:
            run = Run(recipe, f"whole{len(made)}", list(overrides), ray_head.address)
            run.start()
            made[overrides] = run, run.finish()
        return made[overrides]

    return make
