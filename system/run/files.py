"""The files of a run, all in its run folder, and how to find and read them.

config.yaml     the resolved recipe, with tempflow's version and git commit, the run's identity and its inputs
metrics.jsonl   one line per step
experience/     Parquet, one file per step: every leaf with its rewards and advantage
eval/           Parquet, one file per evaluation: every held-out image with its scores; eval/SET/ for a named set
pictures/       Parquet, one file per step: training images of one task, small; old steps are thinned out
samples/        one folder per evaluation: pictures of the first held-out prompts; a folder SET/ in it for a named set
checkpoints/    everything that a resumed run needs
lora/           the adapter that was saved last, for diffusers' load_lora_weights (transformer/ where every weight is
                trained); the header of its file says which step it is
best/           the same of the step with the best held-out reward so far
logs/           one file of JSON lines per process
driver.lock     locked while a driver works on the run
tensorboard/, wandb/   if the recipe asks for them (loggers.py)
report.html

The order of writing within a step: its other files first, then its line of metrics, then its checkpoint's manifest.
"""

import re
from pathlib import Path
from typing import Any

from services.base.errors import UserError
from services.base.storage import Folder, refuse_broken_link
from system.recipe.evaluation import DEFAULT_SET
from system.recipe.model import CheckpointSettings, RunConfig
from system.run.checkpoint import Checkpoints
from system.run.metrics_file import MetricsFile
from system.run.recorded import Recorded, read_recorded

TABLE = re.compile(r"step_(\d{6,})\.parquet")


class RunFiles:
    """The files of a run that has begun or is about to. Nothing is written.

    Args:
        path: the run folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def begun(self) -> bool:
        """Whether any metrics or any step's experience are recorded, even if they cannot be read."""
        has_metrics = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        return has_metrics or bool(tables(self.path / "experience"))

    def last_step(self) -> int | None:
        """The last recorded step; None if there is none."""
        lines = self.read_metrics()
        return lines[-1]["step"] if lines else None

    def read_metrics(self) -> list[dict[str, Any]]:
        """All intact lines in the order of their steps."""
        return MetricsFile(self.metrics_file).read()

    def read_config(self) -> RunConfig:
        """The recipe of a run that has begun, from config.yaml or else from the checkpoints in the run folder.

        Raises:
            UserError: neither has it.
        """
        try:
            return self.read_recorded().config
        except UserError:
            kept = self.checkpoints(CheckpointSettings()).recipe()
            if kept is None:
                raise
            return read_recorded(kept, f"the checkpoints of `{self.path}`").config

    def read_recorded(self) -> Recorded:
        """The recipe and the identity of the run, from config.yaml.

        Raises:
            UserError: the file is torn or missing.
        """
        try:
            text = self.config_file.read_text(errors="replace")
        except FileNotFoundError as error:
            raise UserError(f"`{self.path}` has no config.yaml; give the folder of a run") from error
        return read_recorded(text, str(self.config_file))

    def checkpoints(self, settings: CheckpointSettings) -> Checkpoints:
        """The checkpoints of this run, in its folder or where the settings say.

        Raises:
            UserError: the settings name an unknown storage or a broken link.
        """
        folder = self.checkpoint_folder(settings)
        if folder.local is not None:
            refuse_broken_link(folder.local)
        return Checkpoints(folder, settings.keep)

    def checkpoint_folder(self, settings: CheckpointSettings) -> Folder:
        """The folder of this run's checkpoints, which may be on another storage."""
        if settings.folder is None:
            return Folder.at(str(self.path / "checkpoints"))
        return Folder.at(settings.folder) / self.path.name


def subfolder(name: str) -> str:
    """The part of a path that names a held-out set; empty for that of data.heldout."""
    return "" if name == DEFAULT_SET else name


def eval_folder(name: str) -> str:
    return str(Path("eval", subfolder(name)))


def samples_folder(run: Path, step: int, name: str = DEFAULT_SET) -> Path:
    """The folder with the pictures of a held-out set at a step: 000.png, 001.png, …"""
    return run / "samples" / f"step_{step:06d}" / subfolder(name)


def eval_folders(run: Path) -> dict[str, Path]:
    """The folders with the tables of a run's held-out sets, by name, that of data.heldout first."""
    named = sorted(path for path in (run / "eval").glob("*") if path.is_dir())
    return {DEFAULT_SET: run / "eval", **{path.name: path for path in named}}


def tables(folder: Path) -> dict[int, Path]:
    """The Parquet files that a run has written to a folder, by step, in order. Files with other names are ignored."""
    files = {int(match[1]): path for path in folder.glob("*.parquet") if (match := TABLE.fullmatch(path.name))}
    return dict(sorted(files.items()))
