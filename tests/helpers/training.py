"""Runs of the training loop in the process of the tests."""

from pathlib import Path

import torch
from rich.console import Console

from system.loop.stop import StopFlag
from system.recipe.model import RunConfig
from system.run.opening import open_run
from system.training import train_locally


def trained_locally(config: RunConfig, resume: bool = False) -> Path:
    """Train as `tempflow train --local` does, without a report; returns the run folder.

    The number of CPU threads stays as it was.
    """
    threads = torch.get_num_threads()
    try:
        with open_run(config, resume) as run, StopFlag() as stop:
            train_locally(config, run, Console(quiet=True), stop)
    finally:
        torch.set_num_threads(threads)
    return run.path


def checkpoint_files(run: Path, step: int) -> dict[str, bytes]:
    """The learner's files of a checkpoint."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}
