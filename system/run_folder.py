"""The folder a run leaves behind.

config.yaml     the resolved recipe, with tempflow's version and git commit
metrics.jsonl   a line a step
experience/     Parquet, a file a step: every leaf with its rewards and advantage
eval/           Parquet, a file an evaluation: every held-out image with its scores
samples/        a folder an evaluation: pictures of the first held-out prompts
checkpoints/    what a resumed run needs
lora/           the adapter, for diffusers' load_lora_weights (transformer/ where every weight is trained)
logs/           a file a process: JSON lines
driver.lock     locked while a driver works on the run
tensorboard/, wandb/   where the recipe asks for them (loggers.py)
report.html
"""

import json
import math
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from services.errors import UserError
from services.locks import locked
from services.storage import Folder
from services.text import read_text
from services.yaml_text import dump_yaml, load_yaml
from system import __version__
from system.checkpoint import Checkpoints
from system.config import CheckpointSettings, RunConfig, parse_config
from system.loggers import MetricsLogger

MAY_CHANGE: dict[str, set[str] | bool] = {
    **dict.fromkeys(("steps", "output", "eval", "checkpoint", "log", "ray"), True),
    "reward": {"max_hole_share", "concurrency"},
}
"""Settings that a resumed run may change: none of them enters the arithmetic of a step."""


def git_commit() -> str | None:
    """The commit of the checkout that runs, with a mark where it was changed; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        described = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40", "--match="],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


class RunFolder:
    """Writes and reads one run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.loggers: Sequence[MetricsLogger] = ()
        """Told what is written down."""

    @classmethod
    @contextmanager
    def open(cls, config: RunConfig, resume: bool) -> Iterator["RunFolder"]:
        """A new folder for a new run, or the existing one on `resume`, for this driver alone.

        Raises:
            UserError: the run has begun or there are checkpoints of it and `resume` is off, it began with another
                recipe, or it has a driver already.
        """
        run = cls(Path(config.output) / config.name)
        run.path.mkdir(parents=True, exist_ok=True)
        with locked(run.path / "driver.lock", f"the run `{run.path}`"):
            run._check(config, resume)
            run.write_config(config)
            yield run

    def _check(self, config: RunConfig, resume: bool) -> None:
        """Refuse to go on unasked, or with another recipe. A folder in which nothing is recorded is as good as new."""
        checkpoints = self.checkpoints(config.checkpoint)
        if self.begun:
            what, before = f"the run `{self.path}`", self.read_config()
        elif (kept := checkpoints.recipe()) is not None:
            what = f"the run of the checkpoints in `{checkpoints.folder}`"
            before = read_recipe(kept, str(checkpoints.folder))
        else:
            return
        if not resume:
            raise UserError(f"{what} exists; add --resume to go on with it, or name=… for another")
        check_same(before, config, what)

    @property
    def begun(self) -> bool:
        """Whether anything is recorded."""
        return self.last_step() is not None

    def last_step(self) -> int | None:
        """The last one that is recorded."""
        lines = self.read_metrics()
        return lines[-1]["step"] if lines else None

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def checkpoints(self, settings: CheckpointSettings) -> Checkpoints:
        """Of this run, in its folder or where the settings say.

        Raises:
            UserError: the settings name no storage.
        """
        if settings.folder is None:
            return Checkpoints(Folder.at(str(self.path / "checkpoints")), settings.keep)
        return Checkpoints(Folder.at(settings.folder) / self.path.name, settings.keep)

    @property
    def trained(self) -> Path:
        """`lora/` or, where every weight is trained, `transformer/`."""
        return self.path / ("lora" if self.read_config().policy.lora else "transformer")

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def write_config(self, config: RunConfig) -> None:
        made_by = {"tempflow": {"version": __version__, "commit": git_commit()}}
        write_atomically(self.config_file, dump_yaml(config.model_dump(mode="json") | made_by).encode())

    def read_config(self) -> RunConfig:
        """The recipe of this run.

        Raises:
            UserError: this is not a run folder.
        """
        if not self.config_file.is_file():
            raise UserError(f"`{self.path}` is not a run: it has no config.yaml")
        return read_recipe(read_text(self.config_file), str(self.config_file))

    def append_metrics(self, line: dict[str, Any]) -> None:
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(_plain(line)) + "\n")
        for logger in self.loggers:
            logger.log_metrics(line["step"], line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All lines; without the last one where a full disk or a kill has cut it off."""
        if not self.metrics_file.exists():
            return []
        whole, _, _ = self.metrics_file.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def amend_metrics(self, extra: dict[str, Any]) -> None:
        """Add keys to the last line."""
        *before, last = self.read_metrics()
        lines = [*before, last | _plain(extra)]
        write_atomically(self.metrics_file, "".join(json.dumps(line) + "\n" for line in lines).encode())
        for logger in self.loggers:
            logger.log_metrics(last["step"], extra)

    def has_eval(self, step: int) -> bool:
        return (self.path / "eval" / f"step_{step:06d}.parquet").exists()

    def forget_after(self, step: int) -> None:
        """Drop what was recorded after `step`, so that a resumed run records it again."""
        lines = self.read_metrics()
        kept = [line for line in lines if line["step"] <= step]
        write_atomically(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept).encode())
        for folder in ("experience", "eval"):
            for file in (self.path / folder).glob("step_*.parquet"):
                if int(file.stem.removeprefix("step_")) > step:
                    file.unlink()
        for logger in self.loggers:
            logger.forget_after(step, lines[-1]["step"] if lines else -1)

    def write_experience(self, step: int, table: pa.Table) -> None:
        self._write_table("experience", step, table)

    def write_eval(self, step: int, table: pa.Table) -> None:
        self._write_table("eval", step, table)

    def _write_table(self, folder: str, step: int, table: pa.Table) -> None:
        path = self.path / folder / f"step_{step:06d}.parquet"
        path.parent.mkdir(exist_ok=True)
        aside = path.with_suffix(".tmp")
        pq.write_table(table, aside, compression="zstd")
        aside.rename(path)

    def write_samples(self, step: int, images_NHWC: np.ndarray) -> None:
        folder = self.path / "samples" / f"step_{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images_NHWC):
            Image.fromarray(image).save(folder / f"{i:03d}.png")
        for logger in self.loggers:
            logger.log_images(step, images_NHWC)


def read_recipe(text: str, source: str) -> RunConfig:
    """The recipe that a config.yaml holds.

    Raises:
        UserError: it is no recipe; names the source.
    """
    raw = load_yaml(text, source)
    if not isinstance(raw, dict):
        raise UserError(f"{source}: not a recipe")
    raw.pop("tempflow", None)
    return parse_config(RunConfig, raw, source)


def check_same(before: RunConfig, now: RunConfig, what: str) -> None:
    """Refuse to go on with another recipe than a run began with.

    Raises:
        UserError: names the settings.
    """
    old, new = before.model_dump(exclude=MAY_CHANGE), now.model_dump(exclude=MAY_CHANGE)
    changed = [key for key in new if new[key] != old[key]]
    if changed:
        raise UserError(
            f"{what} began with other settings of {', '.join(changed)}; "
            "resume with the same recipe and overrides, or give the new run a name"
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one move: a reader sees the old bytes or the new, never a part."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _plain(value: Any) -> Any:
    """JSON has no NaN: holes become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
