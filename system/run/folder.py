"""The run folder: everything a run writes.

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

import errno
import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from services.base.errors import UserError, first_line
from services.base.locks import locked
from services.base.storage import Folder, make_folder, refuse_broken_link, write_atomically
from system.recipe.evaluation import DEFAULT_SET
from system.recipe.model import CheckpointSettings, RunConfig
from system.run.checkpoint import Checkpoint, Checkpoints
from system.run.inputs import changed_inputs, read_inputs
from system.run.loggers import MetricsLogger
from system.run.metrics_file import MetricsFile, missing_steps
from system.run.recorded import Recorded, check_same, differences, read_recorded, rounding_differences

log = logging.getLogger(__name__)

TABLE = re.compile(r"step_(\d{6,})\.parquet")
MAX_PICTURES, NEWEST_PICTURES = 100, 20
"""The most steps whose training images are kept, and how many of them are the newest. The others are spread evenly."""
CHECKPOINTS_LOCK = "checkpoints.lock"
"""The lock file in `checkpoint.folder`, which several run folders may share."""


class RunFolder:
    """Writes and reads one run's folder."""

    recorded: Recorded
    """The recipe and the identity of the run. `open` sets it."""
    recipe: str
    """The text of config.yaml, which `open` writes and each checkpoint contains."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.loggers: Sequence[MetricsLogger] = ()
        """These loggers receive the metrics and pictures that are written to the folder."""
        self.notes: list[str] = []
        """Sentences about how the run was opened, for the log file, which does not exist yet at that moment."""

    @classmethod
    @contextmanager
    def open(cls, config: RunConfig, resume: bool, accept_changes: bool = False) -> Iterator["RunFolder"]:
        """Open a new folder for a new run, or the existing folder with `resume`. A lock keeps other drivers out.

        Args:
            accept_changes: continue even if a file or a model that the recipe names has changed.

        Raises:
            UserError: the run or checkpoints of it exist and `resume` is off; its checkpoints are missing; it began
                with another recipe or other inputs; or another driver works on it.
        """
        run = cls(Path(config.output) / config.name)
        kept = config.checkpoint.folder or str(run.path / "checkpoints")
        with ExitStack() as stack:
            with _named("output", run.path):
                refuse_broken_link(run.path)
                make_folder(run.path)
                stack.enter_context(locked(run.path / "driver.lock", f"the run `{run.path}`"))
            with _named("checkpoint.folder", kept):
                stack.enter_context(run._checkpoints_locked(config.checkpoint))
                run.recorded = run._recorded(config, resume, accept_changes)
                run.newest_checkpoint(run.checkpoints(config.checkpoint), config.steps)
            run.recipe = run.recorded.text()
            with _named("output", run.path):
                write_atomically(run.config_file, run.recipe.encode())
            yield run

    def _checkpoints_locked(self, settings: CheckpointSettings) -> AbstractContextManager[None]:
        """A lock on the run's part of `checkpoint.folder`, if that is on this machine.

        If the run has begun and the folder is missing, the folder is not made, because the run will be refused.
        """
        folder = self.checkpoints(settings).folder.local
        if settings.folder is None or folder is None or (self.begun and not folder.is_dir()):
            return nullcontext()
        make_folder(folder)
        return locked(folder / CHECKPOINTS_LOCK, f"the folder of checkpoints `{folder}`")

    def _recorded(self, config: RunConfig, resume: bool, accept_changes: bool) -> Recorded:
        """The run to open: a new run, or the run that its folder or its checkpoints record, if that may continue.

        Raises:
            UserError: as `open`.
        """
        checkpoints = self.checkpoints(config.checkpoint)
        kept = checkpoints.recipe()
        if not self.begun and kept is None:
            return Recorded(config, inputs=read_inputs(config))
        what = f"the run `{self.path}`" if self.begun else f"the run of the checkpoints in `{checkpoints.folder}`"
        if not resume:
            raise UserError(f"{what} exists; add --resume to continue it, or name=… for another")
        if kept is None:
            raise self._lost(checkpoints)
        theirs = read_recorded(kept, f"the checkpoints in `{checkpoints.folder}`")
        before = self._own(theirs) if self.begun else theirs
        check_same(before.config, config, what)
        changed = differences(before.config, config)
        changed.pop("output", None)
        if changed:
            self.notes.append(f"{what} continues with changed settings: {'; '.join(changed.values())}")
        if rounds := rounding_differences(before.config, config):
            self.notes.append(
                f"the weights will differ in rounding from those of an unchanged run: {'; '.join(rounds)}"
            )
        _check_of(theirs, before, checkpoints)
        return Recorded(config, before.run, self._accepted(before, read_inputs(config), what, accept_changes))

    def _accepted(self, before: Recorded, now: dict[str, str], what: str, accept_changes: bool) -> dict[str, str]:
        """The inputs of a run that continues.

        Raises:
            UserError: an input has changed, and `accept_changes` is off.
        """
        changed = ", ".join(changed_inputs(before.inputs, now))
        if changed and not accept_changes:
            raise UserError(
                f"the content of {changed} has changed since {what} began; "
                "restore the old content, or add --accept-changes to continue with the new one"
            )
        if changed:
            self.notes.append(f"{what} continues with changed content of {changed}")
        return before.inputs | now

    def _own(self, theirs: Recorded) -> Recorded:
        """The recipe in config.yaml, or the checkpoints' recipe if that file is torn or missing."""
        try:
            return self._read_own()
        except UserError as error:
            self.notes.append(f"the recipe of the newest checkpoint is used instead of config.yaml: {error}")
            return theirs

    def _read_own(self) -> Recorded:
        """The recipe in config.yaml.

        Raises:
            UserError: the file is torn or missing.
        """
        try:
            text = self.config_file.read_text(errors="replace")
        except FileNotFoundError as error:
            raise UserError(f"`{self.path}` has no config.yaml; give the folder of a run") from error
        return read_recorded(text, str(self.config_file))

    def _lost(self, checkpoints: Checkpoints) -> UserError:
        """The error for a run that has begun and has no checkpoint: it must not silently start again."""
        last, advice = self.last_step(), "mount or restore the storage that had them"
        recorded = "has begun" if last is None else f"has recorded step {last}"
        try:
            settings = self._read_own().config.checkpoint
            if str(kept := self._checkpoint_folder(settings)) != str(checkpoints.folder):
                override = f"checkpoint.folder={settings.folder or 'null'}"
                advice = f"its config.yaml names `{kept}`, so add {override}"
        except UserError as error:
            advice += f" ({error})"
        return UserError(
            f"the run `{self.path}` {recorded}, but there is no checkpoint of it in `{checkpoints.folder}`; "
            f"{advice}, or start a new run with another name=…"
        )

    def newest_checkpoint(self, checkpoints: Checkpoints, steps: int) -> Checkpoint | None:
        """The checkpoint that this run continues from; None if nothing is recorded yet.

        Args:
            steps: training steps of the whole run.

        Raises:
            UserError: the checkpoint is missing, or belongs to another run or recipe; or steps that are recorded
                after it would be lost, because `steps` is too small to repeat them.
        """
        found = checkpoints.latest()
        if found is None:
            if self.begun:
                raise self._lost(checkpoints)
            return None
        theirs = read_recorded(found.recipe, f"the checkpoint `{found.folder}`")
        check_same(theirs.config, self.recorded.config, f"the checkpoint `{found.folder}`")
        _check_of(theirs, self.recorded, checkpoints)
        last = max([*tables(self.path / "experience"), self.last_step() or 0])
        if found.state.step < last and steps < last:
            raise UserError(
                f"the run `{self.path}` has recorded step {last}, and its newest checkpoint is of step "
                f"{found.state.step}: steps={steps} would lose the later steps; set steps to {last} or more"
            )
        return found

    @property
    def begun(self) -> bool:
        """Whether any metrics or any step's experience are recorded, even if they cannot be read."""
        has_metrics = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        return has_metrics or bool(tables(self.path / "experience"))

    def last_step(self) -> int | None:
        """The last recorded step; None if there is none."""
        lines = self.read_metrics()
        return lines[-1]["step"] if lines else None

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def checkpoints(self, settings: CheckpointSettings) -> Checkpoints:
        """The checkpoints of this run, in its folder or where the settings say.

        Raises:
            UserError: the settings name an unknown storage or a broken link.
        """
        folder = self._checkpoint_folder(settings)
        if folder.local is not None:
            refuse_broken_link(folder.local)
        return Checkpoints(folder, settings.keep)

    def _checkpoint_folder(self, settings: CheckpointSettings) -> Folder:
        if settings.folder is None:
            return Folder.at(str(self.path / "checkpoints"))
        return Folder.at(settings.folder) / self.path.name

    @property
    def trained(self) -> Path:
        """`lora/`, or `transformer/` if every weight is trained."""
        return self.path / ("lora" if self.recorded.config.policy.lora else "transformer")

    @property
    def best(self) -> Path:
        """The trained weights with the best held-out reward, in the layout of `trained`."""
        return self.path / "best"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def read_config(self) -> RunConfig:
        """The recipe of a run that has begun, from config.yaml or else from the checkpoints in the run folder.

        Raises:
            UserError: neither has it.
        """
        try:
            return self._read_own().config
        except UserError:
            kept = self.checkpoints(CheckpointSettings()).recipe()
            if kept is None:
                raise
            return read_recorded(kept, f"the checkpoints of `{self.path}`").config

    def append_metrics(self, line: dict[str, Any]) -> None:
        MetricsFile(self.metrics_file).append(line)
        for logger in self.loggers:
            logger.log_metrics(line["step"], line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All intact lines in the order of their steps."""
        return MetricsFile(self.metrics_file).read()

    def amend_metrics(self, extra: dict[str, Any]) -> None:
        """Add keys to the last line."""
        step = MetricsFile(self.metrics_file).amend(extra)["step"]
        for logger in self.loggers:
            logger.log_metrics(step, extra)

    def has_eval(self, step: int, sets: Iterable[str]) -> bool:
        """Whether the evaluation of a step is recorded for each of these sets."""
        return all((self.path / _eval_folder(name) / f"step_{step:06d}.parquet").exists() for name in sets)

    def forget_after(self, step: int) -> None:
        """Drop everything recorded after `step`, so that a resumed run records it again.

        The log names the steps up to `step` whose metrics are missing, unless the folder is new.
        """
        lines, was_new = self.read_metrics(), not self.begun
        MetricsFile(self.metrics_file).forget_after(step)
        if not was_new and (missing := missing_steps(lines, step)):
            log.warning("%s has no intact line for step %s", self.metrics_file, missing)
        for folder in (self.path / "experience", self.path / "pictures", *eval_folders(self.path).values()):
            for of_step, file in tables(folder).items():
                if of_step > step:
                    file.unlink()
        for logger in self.loggers:
            logger.forget_after(step, lines[-1]["step"] if lines else -1)

    def write_experience(self, step: int, table: pa.Table) -> None:
        self._write_table("experience", step, table)
        for logger in self.loggers:
            logger.log_experience(step, table)

    def write_eval(self, step: int, table: pa.Table, name: str = DEFAULT_SET) -> None:
        """Write the scores of a held-out set."""
        self._write_table(_eval_folder(name), step, table)

    def write_pictures(self, step: int, table: pa.Table) -> None:
        """Write the images of a training step. Beyond MAX_PICTURES files, those of another step are removed."""
        self._write_table("pictures", step, table)
        files = tables(self.path / "pictures")
        if len(files) > MAX_PICTURES:
            files[superfluous(list(files)[:-NEWEST_PICTURES])].unlink(missing_ok=True)

    def _write_table(self, folder: str, step: int, table: pa.Table) -> None:
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        write_atomically(self.path / folder / f"step_{step:06d}.parquet", content.getbuffer())

    def write_samples(
        self, step: int, images_NHWC: np.ndarray, captions: Sequence[str], name: str = DEFAULT_SET
    ) -> None:
        """Write pictures of a held-out set. The loggers get them with their captions."""
        folder = samples_folder(self.path, step, name)
        for i, image in enumerate(images_NHWC):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "PNG")
            write_atomically(folder / f"{i:03d}.png", content.getbuffer())
        for logger in self.loggers:
            logger.log_images(step, str(Path("samples", _subfolder(name))), images_NHWC, captions)

    def log_training(self, step: int, images_NHWC: np.ndarray, captions: Sequence[str]) -> None:
        """Send training images to the loggers. The folder keeps them with `write_pictures`."""
        for logger in self.loggers:
            logger.log_images(step, "training", images_NHWC, captions)


@contextmanager
def _named(setting: str, place: object) -> Iterator[None]:
    """Turn an error of a storage that does not answer or cannot be written into one sentence.

    Raises:
        UserError: the sentence.
        OSError: the storage is full; the caller reports that.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        said = first_line(error)
        raise UserError(f"{setting}: `{place}` cannot be used ({said}); fix it, or change {setting}") from error


def _subfolder(name: str) -> str:
    return "" if name == DEFAULT_SET else name


def _eval_folder(name: str) -> str:
    return str(Path("eval", _subfolder(name)))


def samples_folder(run: Path, step: int, name: str = DEFAULT_SET) -> Path:
    """The folder with the pictures of a held-out set at a step: 000.png, 001.png, …"""
    return run / "samples" / f"step_{step:06d}" / _subfolder(name)


def eval_folders(run: Path) -> dict[str, Path]:
    """The folders with the tables of a run's held-out sets, by name, that of data.heldout first."""
    named = sorted(path for path in (run / "eval").glob("*") if path.is_dir())
    return {DEFAULT_SET: run / "eval", **{path.name: path for path in named}}


def tables(folder: Path) -> dict[int, Path]:
    """The Parquet files that a run has written to a folder, by step, in order. Files with other names are ignored."""
    files = {int(match[1]): path for path in folder.glob("*.parquet") if (match := TABLE.fullmatch(path.name))}
    return dict(sorted(files.items()))


def superfluous(steps: Sequence[int]) -> int:
    """The step whose neighbours are closest to each other, the earliest of several; never the first or the last.

    Args:
        steps: in order, at least three.
    """
    gaps = [after - before for before, after in zip(steps, steps[2:], strict=False)]
    return steps[1 + gaps.index(min(gaps))]


def _check_of(theirs: Recorded, ours: Recorded, checkpoints: Checkpoints) -> None:
    """Refuse checkpoints of another run, even if it has the same name and recipe.

    Raises:
        UserError: the checkpoints belong to another run.
    """
    if theirs.run != ours.run:
        raise UserError(
            f"the checkpoints in `{checkpoints.folder}` belong to another run of the same name; "
            "set checkpoint.folder to the folder with this run's checkpoints, or start a new run with another name=…"
        )
