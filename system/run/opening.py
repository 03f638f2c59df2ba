"""Whether a run may begin, or continue what its folder and its checkpoints record."""

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

from services.base.errors import UserError, first_line
from services.base.locks import locked
from services.base.storage import make_folder, refuse_broken_link
from system.recipe.model import CheckpointSettings, RunConfig
from system.run.checkpoint import Checkpoint, Checkpoints
from system.run.files import RunFiles, tables
from system.run.folder import RunFolder
from system.run.inputs import changed_inputs, read_inputs
from system.run.recorded import Recorded, check_same, differences, read_recorded, rounding_differences

CHECKPOINTS_LOCK = "checkpoints.lock"
"""The lock file in `checkpoint.folder`, which several run folders may share."""


@contextmanager
def open_run(config: RunConfig, resume: bool, accept_changes: bool = False) -> Iterator[RunFolder]:
    """Open a new folder for a new run, or the existing folder with `resume`. A lock keeps other drivers out.

    Args:
        accept_changes: continue even if a file or a model that the recipe names has changed.

    Raises:
        UserError: the run or checkpoints of it exist and `resume` is off; its checkpoints are missing; it began with
            another recipe or other inputs; or another driver works on it.
    """
    files = RunFiles(Path(config.output) / config.name)
    kept = config.checkpoint.folder or str(files.path / "checkpoints")
    notes: list[str] = []
    with ExitStack() as stack:
        with _named("output", files.path):
            refuse_broken_link(files.path)
            make_folder(files.path)
            stack.enter_context(locked(files.path / "driver.lock", f"the run `{files.path}`"))
        with _named("checkpoint.folder", kept):
            stack.enter_context(_checkpoints_locked(files, config.checkpoint))
            checkpoints = files.checkpoints(config.checkpoint)
            recorded = _recorded(files, checkpoints, config, resume, accept_changes, notes)
            newest_checkpoint(files, recorded, checkpoints)
        run = RunFolder(files.path, recorded, notes)
        with _named("output", files.path):
            run.write_recipe()
        yield run


def newest_checkpoint(files: RunFiles, recorded: Recorded, checkpoints: Checkpoints) -> Checkpoint | None:
    """The checkpoint that a run continues from; None if nothing is recorded yet.

    Raises:
        UserError: the checkpoint is missing, or belongs to another run or recipe; or steps that are recorded after it
            would be lost, because the recipe has too few steps to repeat them.
    """
    found = checkpoints.latest()
    if found is None:
        if files.begun:
            raise _without_checkpoint(files, checkpoints)
        return None
    theirs = read_recorded(found.recipe, f"the checkpoint `{found.folder}`")
    check_same(theirs.config, recorded.config, f"the checkpoint `{found.folder}`")
    _check_of(theirs, recorded, checkpoints)
    last, steps = max([*tables(files.path / "experience"), files.last_step() or 0]), recorded.config.steps
    if found.state.step < last and steps < last:
        raise UserError(
            f"the run `{files.path}` has recorded step {last}, and its newest checkpoint is of step "
            f"{found.state.step}: steps={steps} would lose the later steps; set steps to {last} or more"
        )
    return found


def _checkpoints_locked(files: RunFiles, settings: CheckpointSettings) -> AbstractContextManager[None]:
    """A lock on the run's part of `checkpoint.folder`, if that is on this machine.

    If the run has begun and the folder is missing, the folder is not made, because the run will be refused.
    """
    folder = files.checkpoints(settings).folder.local
    if settings.folder is None or folder is None or (files.begun and not folder.is_dir()):
        return nullcontext()
    make_folder(folder)
    return locked(folder / CHECKPOINTS_LOCK, f"the folder of checkpoints `{folder}`")


def _recorded(
    files: RunFiles,
    checkpoints: Checkpoints,
    config: RunConfig,
    resume: bool,
    accept_changes: bool,
    notes: list[str],
) -> Recorded:
    """The run to open: a new run, or the run that its folder or its checkpoints record, if that may continue.

    Args:
        notes: gets sentences about what has changed since the run began.

    Raises:
        UserError: as `open_run`.
    """
    kept = checkpoints.recipe()
    if not files.begun and kept is None:
        return Recorded(config, inputs=read_inputs(config))
    what = f"the run `{files.path}`" if files.begun else f"the run of the checkpoints in `{checkpoints.folder}`"
    if not resume:
        raise UserError(f"{what} exists; add --resume to continue it, or name=… for another")
    if kept is None:
        raise _without_checkpoint(files, checkpoints)
    theirs = read_recorded(kept, f"the checkpoints in `{checkpoints.folder}`")
    before = _own(files, theirs, notes) if files.begun else theirs
    check_same(before.config, config, what)
    changed = differences(before.config, config)
    changed.pop("output", None)
    if changed:
        notes.append(f"{what} continues with changed settings: {'; '.join(changed.values())}")
    if rounds := rounding_differences(before.config, config):
        notes.append(f"the weights will differ in rounding from those of an unchanged run: {'; '.join(rounds)}")
    _check_of(theirs, before, checkpoints)
    inputs = _accepted(before.inputs, read_inputs(config), what, accept_changes, notes)
    return Recorded(config, before.run, inputs)


def _accepted(
    before: dict[str, str], now: dict[str, str], what: str, accept_changes: bool, notes: list[str]
) -> dict[str, str]:
    """The inputs of a run that continues.

    Raises:
        UserError: an input has changed, and `accept_changes` is off.
    """
    changed = ", ".join(changed_inputs(before, now))
    if changed and not accept_changes:
        raise UserError(
            f"the content of {changed} has changed since {what} began; "
            "restore the old content, or add --accept-changes to continue with the new one"
        )
    if changed:
        notes.append(f"{what} continues with changed content of {changed}")
    return before | now


def _own(files: RunFiles, theirs: Recorded, notes: list[str]) -> Recorded:
    """The recipe in config.yaml, or the checkpoints' recipe if that file is torn or missing."""
    try:
        return files.read_recorded()
    except UserError as error:
        notes.append(f"the recipe of the newest checkpoint is used instead of config.yaml: {error}")
        return theirs


def _without_checkpoint(files: RunFiles, checkpoints: Checkpoints) -> UserError:
    """The error for a run that has begun and has no checkpoint: it must not silently start again."""
    last, advice = files.last_step(), "mount or restore the storage that had them"
    recorded = "has begun" if last is None else f"has recorded step {last}"
    try:
        settings = files.read_recorded().config.checkpoint
        if str(kept := files.checkpoint_folder(settings)) != str(checkpoints.folder):
            override = f"checkpoint.folder={settings.folder or 'null'}"
            advice = f"its config.yaml names `{kept}`, so add {override}"
    except UserError as error:
        advice += f" ({error})"
    return UserError(
        f"the run `{files.path}` {recorded}, but there is no checkpoint of it in `{checkpoints.folder}`; "
        f"{advice}, or start a new run with another name=…"
    )


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
