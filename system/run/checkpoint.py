"""Checkpoints hold everything the next step needs. A manifest of checksums, written last, makes a checkpoint valid."""

import json
import logging
import os
import platform
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from services.base.errors import UserError, first_line
from services.base.storage import Folder
from system import __version__

log = logging.getLogger(__name__)

STATE_FILE, RECIPE_FILE, MANIFEST_FILE = "state.json", "recipe.yaml", "manifest.json"
AMENDED_FILE = "state_amended.json"
"""The state that takes the place of STATE_FILE if a checkpoint was amended."""
DRIVER_FILE = "driver"
"""The file beside the checkpoints that names the only driver that may write them."""
NAME = re.compile(r"step_(\d{6,})")
DAMAGE = (ValueError, TypeError, AttributeError, KeyError, FileNotFoundError)
"""Errors that mean a torn or altered file. Any other OSError is a fault of the storage, and the file may be intact."""


@dataclass(frozen=True)
class RunState:
    """The state of a run after a completed step."""

    step: int = 0
    """Steps done; also the policy version."""
    nfe: int = 0
    decodes: int = 0
    scores: int = 0
    elapsed_s: float = 0.0
    heldout: float | None = None
    """Held-out reward of this step's policy; None if it was not evaluated."""
    best_heldout: float | None = None
    """The best held-out reward of an evaluated policy so far; None if none is known."""
    evaluations_since_best: int = 0
    """The number of evaluations since the one with the best held-out reward."""

    @property
    def is_best(self) -> bool:
        """Whether the policy of this step has the best held-out reward so far."""
        return self.heldout is not None and self.evaluations_since_best == 0

    def evaluated(self, heldout: float | None) -> "RunState":
        """The state with the held-out reward of this step's policy; None if it is not known."""
        if heldout is None:
            return replace(self, heldout=None)
        if self.best_heldout is None or heldout > self.best_heldout:
            return replace(self, heldout=heldout, best_heldout=heldout, evaluations_since_best=0)
        return replace(self, heldout=heldout, evaluations_since_best=self.evaluations_since_best + 1)


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint. The checkpoint of step 0 contains no weights, because the recipe determines them."""

    folder: Folder
    state: RunState
    recipe: str
    """The config.yaml of the run that wrote the checkpoint."""


class Damaged(Exception):
    """A checkpoint is torn or altered, or its manifest was never written. The message says why."""


class Checkpoints:
    """The checkpoints of a run, one folder each.

    Args:
        folder: the folder of the checkpoints, on any storage.
        keep: how many of the newest checkpoints are kept. The one with the best held-out reward is kept, too.
    """

    def __init__(self, folder: Folder, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.driver = f"{platform.node()} {os.getpid()} {uuid.uuid4().hex}"
        self._whole: dict[str, RunState] = {}
        """The checkpoints that this process has written or verified."""

    def claim(self) -> None:
        """Make this driver the only one that may write here.

        An earlier driver, which may run on another machine, is refused from now on, so that two never write in turns.
        """
        self.folder.write(DRIVER_FILE, self.driver.encode())

    def check_claim(self) -> None:
        """Check that this driver may still write here.

        Raises:
            UserError: another driver has taken over.
            OSError: the claim cannot be read.
        """
        driver = self.folder.read(DRIVER_FILE).decode(errors="replace")
        if driver != self.driver:
            host, process, *_ = [*driver.split(), "?", "?"]
            raise UserError(
                f"another driver has taken over the checkpoints in {self.folder} (process {process} on {host}), so "
                "this one stops; run only one driver at a time for a run"
            )

    def begin(self, step: int) -> Folder:
        """Return an empty folder for the learner's files. It becomes a checkpoint only with `commit`.

        Raises:
            UserError: another driver has taken over.
            OSError: the storage failed.
        """
        self.check_claim()
        folder = self._of(step)
        self._whole.pop(_name(step), None)
        folder.remove()
        return folder

    def commit(self, state: RunState, sha256: Mapping[str, str], recipe: str) -> None:
        """Write the manifest of a checkpoint whose files are written, then remove the checkpoints that are not kept.

        Args:
            sha256: the checksum of each of the learner's files.
            recipe: the run's config.yaml.

        Raises:
            UserError: another driver has taken over.
            OSError: the storage failed. If an old checkpoint cannot be removed, that is only logged.
        """
        folder = self._of(state.step)
        sealed = dict(sha256)
        sealed[STATE_FILE] = folder.write(STATE_FILE, json.dumps(asdict(state), indent=1).encode())
        sealed[RECIPE_FILE] = folder.write(RECIPE_FILE, recipe.encode())
        self._seal(state, sealed)

    def _seal(self, state: RunState, sealed: Mapping[str, str]) -> None:
        """Write the manifest, which makes a checkpoint of the files. Then remove the checkpoints that are not kept."""
        manifest = {"tempflow": __version__, "sha256": dict(sorted(sealed.items()))}
        self.check_claim()
        self._of(state.step).write(MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
        self._whole[_name(state.step)] = state
        try:
            self._forget()
        except OSError as error:
            log.warning("old checkpoints in %s could not be removed: %s", self.folder, first_line(error))

    def amend(self, state: RunState) -> None:
        """Give a checkpoint another state of its step. Its other files stay.

        The state is in a file of its own, which counts only from the new manifest on. So a process that is killed
        before that leaves the checkpoint as it was.

        Raises:
            Damaged: the checkpoint has no manifest.
            UserError: another driver has taken over.
            OSError: the storage failed.
        """
        folder = self._of(state.step)
        amended = folder.write(AMENDED_FILE, json.dumps(asdict(state), indent=1).encode())
        self._seal(state, _manifest(folder) | {AMENDED_FILE: amended})

    def latest(self) -> Checkpoint | None:
        """The newest valid checkpoint. Torn or altered ones are skipped with a warning in the log.

        Raises:
            UserError: there are checkpoints with a manifest, and all of them are torn or altered.
            OSError: the storage cannot be read.
        """
        damaged = {}
        for name in reversed(self._names()):
            folder = self.folder / name
            try:
                state = self._whole[name] = _verified(folder)
                return Checkpoint(folder, state, folder.read(RECIPE_FILE).decode())
            except Damaged as damage:
                self._whole.pop(name, None)
                damaged[name] = damage
                log.warning("checkpoint %s cannot be used (%s); trying the one before it", folder, damage)
        self._refuse(damaged)
        return None

    def best(self) -> Checkpoint | None:
        """The valid checkpoint with the best held-out reward, the earliest of several; None if none records one."""
        return next((found for name in self._by_score() if (found := self._valid(name))), None)

    def at(self, step: int) -> Checkpoint | None:
        """The checkpoint of a step; None if it is not kept, or damaged, which the log says."""
        return self._valid(_name(step)) if _name(step) in self._names() else None

    def steps(self) -> list[int]:
        """The steps whose checkpoints are kept, in order. They are not verified."""
        return [_step(name) for name in self._names()]

    def _valid(self, name: str) -> Checkpoint | None:
        if not self._is_whole(name):
            return None
        folder = self.folder / name
        return Checkpoint(folder, self._whole[name], folder.read(RECIPE_FILE).decode())

    def recipe(self) -> str | None:
        """The config.yaml in the newest checkpoint whose copy of it is intact; None if there are no checkpoints.

        Raises:
            UserError: there are checkpoints with a manifest, and all of them are torn or altered.
            OSError: the storage cannot be read.
        """
        damaged = {}
        for name in reversed(self._names()):
            folder = self.folder / name
            try:
                _check(folder, {RECIPE_FILE: _manifest(folder)[RECIPE_FILE]})
                return folder.read(RECIPE_FILE).decode()
            except Damaged as damage:
                damaged[name] = damage
        self._refuse(damaged)
        return None

    def _refuse(self, damaged: Mapping[str, Damaged]) -> None:
        """Refuse to continue where every checkpoint is damaged and at least one has a manifest.

        Args:
            damaged: why each checkpoint is unusable, the newest first.
        """
        sealed = [name for name in damaged if MANIFEST_FILE in (self.folder / name).names()]
        if sealed:
            raise UserError(
                f"no checkpoint in {self.folder} can be used; the newest of {len(sealed)} is {sealed[0]} "
                f"({damaged[sealed[0]]}): restore an intact one, or start a new run with another name=…"
            )

    def _of(self, step: int) -> Folder:
        return self.folder / _name(step)

    def _names(self) -> list[str]:
        """The names of the checkpoints in the order of their steps. Files and folders with other names are ignored."""
        found = [name for name in self.folder.folders() if NAME.fullmatch(name) and name == _name(_step(name))]
        return sorted(found, key=_step)

    def _forget(self) -> None:
        """Remove the checkpoints that are not kept. Damaged ones do not count towards `keep`.

        Checkpoints are verified from the newest on until `keep` are valid. Of the older ones, only those that may be
        the best are verified.
        """
        names = self._names()
        kept: list[str] = []
        for name in reversed(names):
            if len(kept) < self.keep and self._is_whole(name):
                kept.append(name)
        best = next((name for name in self._by_score() if name in kept or self._is_whole(name)), None)
        for name in set(names) - {*kept, best}:
            (self.folder / name).remove()
            self._whole.pop(name, None)

    def _by_score(self) -> list[str]:
        """The names of the checkpoints with a held-out reward, the best first, and the earlier of two equal ones."""
        scores = {name: heldout for name in self._names() if (heldout := self._heldout(name)) is not None}
        return sorted(scores, key=lambda name: (scores[name], -_step(name)), reverse=True)

    def _heldout(self, name: str) -> float | None:
        """The held-out reward that a checkpoint records, without verifying it; None if it records none."""
        if name in self._whole:
            return self._whole[name].heldout
        try:
            return _state(self.folder / name, _manifest(self.folder / name)).heldout
        except (Damaged, *DAMAGE):
            return None

    def _is_whole(self, name: str) -> bool:
        """Whether a checkpoint is valid. One that this process has written or verified is not read again."""
        if name not in self._whole:
            try:
                self._whole[name] = _verified(self.folder / name)
            except Damaged as damage:
                log.warning("checkpoint %s cannot be used (%s)", self.folder / name, damage)
        return name in self._whole


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _step(name: str) -> int:
    return int(name.removeprefix("step_"))


def _manifest(folder: Folder) -> dict[str, str]:
    """The SHA-256 of each file of a checkpoint, from its manifest.

    Raises:
        Damaged: the manifest cannot be read, or lacks a file that every checkpoint has.
    """
    try:
        expected_of = json.loads(folder.read(MANIFEST_FILE))["sha256"]
        missing = {STATE_FILE, RECIPE_FILE} - expected_of.keys()
    except DAMAGE as error:
        raise Damaged(f"{type(error).__name__}: {first_line(error)}") from error
    if missing:
        raise Damaged(f"its manifest has no {', '.join(sorted(missing))}")
    return expected_of


def _state(folder: Folder, manifest: Mapping[str, str]) -> RunState:
    """The state of a checkpoint with this manifest."""
    return RunState(**json.loads(folder.read(AMENDED_FILE if AMENDED_FILE in manifest else STATE_FILE)))


def _check(folder: Folder, expected_of: Mapping[str, str]) -> None:
    """Compare files with their checksums.

    Raises:
        Damaged: a file differs or is missing.
        OSError: the storage cannot be read.
    """
    for name, expected in expected_of.items():
        try:
            found = folder.sha256(name)
        except FileNotFoundError as error:
            raise Damaged(f"it has no {name}") from error
        if found != expected:
            raise Damaged(f"{name} does not match its checksum")


def _verified(folder: Folder) -> RunState:
    """Check every file of a checkpoint against its checksum, and return the checkpoint's state.

    Raises:
        Damaged: a file does not match, or the state cannot be read or is of another step.
        OSError: the storage cannot be read.
    """
    manifest = _manifest(folder)
    _check(folder, manifest)
    try:
        state = _state(folder, manifest)
    except DAMAGE as error:
        raise Damaged(f"{type(error).__name__}: {first_line(error)}") from error
    if not folder.path.endswith(f"/{_name(state.step)}"):
        raise Damaged(f"its state is of step {state.step}")
    return state
