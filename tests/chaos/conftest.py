"""The live Ray and tiny recipe of the chaos tests, and undisturbed runs to compare the disturbed ones with."""

from pathlib import Path

import pytest

from tests.helpers.command_line import tempflow
from tests.helpers.disturbed_runs import Run
from tests.helpers.recipes import tiny_recipe
from tests.helpers.training import trained_locally

__all__ = ["tempflow"]


@pytest.fixture(scope="session")
def undisturbed(sd3_folder, ray_head, tmp_path_factory):
    """The folder of a run of these overrides in which nothing fails. Each is made once.

    It runs in one process, without Ray, which gives the same bits. Only several ranks need a Ray.
    """
    recipe, made = tiny_recipe(sd3_folder, tmp_path_factory.mktemp("undisturbed")), {}

    def make(*overrides: str) -> Path:
        if overrides in made:
            return made[overrides]
        run = Run(recipe, f"whole{len(made)}", list(overrides), ray_head.address)
        if run.config().learner.ranks == 1:
            trained_locally(run.config())
        else:
            run.start()
            run.finish()
        made[overrides] = run.path
        return run.path

    return make
