"""The command line, the Ray that a module drives, and one run on Ray that several tests look at."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.command_line import run_cli, tempflow
from tests.helpers.holes import write_scorers
from tests.helpers.ray_head import local_ray
from tests.helpers.recipes import tiny_recipe
from tests.helpers.secrets import CANARIES

__all__ = ["local_ray", "tempflow"]


@dataclass(frozen=True)
class Finished:
    """A run that went well."""

    recipe: Path
    overrides: list[str]
    path: Path
    printed: str


@pytest.fixture(scope="session")
def with_holes(sd3_folder, ray_head, tmp_path_factory) -> Finished:
    """A run on Ray with two rollout workers, a learner and two scorers, of which one leaves holes.

    It has secrets in its environment and writes for TensorBoard and W&B.
    """
    folder = tmp_path_factory.mktemp("with_holes")
    recipe = tiny_recipe(sd3_folder, folder)
    write_scorers(folder)
    holes = ["scorers.0.scorer=broken:SomeNaN", "scorers.0.options.percent=50", "reward.max_hole_share=0.7"]
    overrides = [*holes, "scorers.whole={scorer: jpeg_size, num_cpus: 0.1}"]
    loggers = ["log.tensorboard=true", "log.wandb={mode: offline}"]
    done = run_cli(
        "train", recipe, "name=ray", *overrides, *loggers, folder=folder, address=ray_head.address, env=CANARIES
    )
    assert done.returncode == 0, done.stderr
    return Finished(recipe, overrides, folder / "runs" / "ray", done.stdout + done.stderr)
