"""Runs that have begun: their recipe, their records and their checkpoints, without training."""

from pathlib import Path

import pyarrow as pa

from system.recipe.load import parse_config
from system.recipe.model import RunConfig
from system.run.checkpoint import RunState
from system.run.folder import RunFolder
from system.run.opening import open_run
from tests.helpers.recipes import MINIMAL


def config(tmp_path, **more) -> RunConfig:
    return parse_config(RunConfig, MINIMAL | {"name": "mine", "output": str(tmp_path)} | more, "test")


def kept_in(folder: Path, **more) -> dict:
    return {"checkpoint": {"folder": str(folder)}, **more}


def seal(run: RunFolder, settings: RunConfig, *steps: int) -> None:
    checkpoints = run.checkpoints(settings.checkpoint)
    checkpoints.claim()
    for step in steps:
        folder = checkpoints.begin(step)
        digests = {"weights": folder.write("weights", b"of %d" % step)} if step else {}
        checkpoints.commit(RunState(step=step), digests, run.recipe)


def begin(settings: RunConfig, recorded: int = 2, sealed: tuple[int, ...] = (0, 2)) -> RunFolder:
    """A run that has ended after some steps."""
    with open_run(settings, resume=False) as run:
        seal(run, settings, *sealed)
        for step in range(recorded + 1):
            run.write_experience(step, pa.table({"step": [step]}))
            run.append_metrics({"step": step})
    return run
