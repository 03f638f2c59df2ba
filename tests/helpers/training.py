"""Runs of the training loop in the process of the tests."""

from pathlib import Path

import torch
from rich.console import Console

from actors.rollout.plans import trainable_steps
from system.local.roles import LocalRoles
from system.loop.prompts import read_prompts
from system.loop.recorder import Recorder
from system.loop.trainer import Trainer
from system.recipe.model import RunConfig
from system.run.folder import RunFolder
from system.run.progress import Progress


def train_locally(config: RunConfig, resume: bool = False) -> Path:
    """Train by a recipe without Ray, and return the run folder. The number of CPU threads stays as it was."""
    threads = torch.get_num_threads()
    data = config.data
    train, heldout = (
        read_prompts(name, data.prompt_column, data.category_column) if name else None
        for name in (data.train, data.heldout)
    )
    try:
        with RunFolder.open(config, resume) as run, Progress(config.steps, Console(quiet=True)) as progress:
            roles = LocalRoles(config, trainable_steps(config.plan, config.policy.num_steps), lambda: None)
            Trainer(config, run, roles, train, heldout, Recorder(config, run, progress), lambda: None).fit()
    finally:
        torch.set_num_threads(threads)
    return run.path


def checkpoint_files(run: Path, step: int) -> dict[str, bytes]:
    """The learner's files of a checkpoint."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}
