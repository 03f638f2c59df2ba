"""Checkpoints: everything the next step needs, sealed by a manifest of checksums that is written last."""

import json
import logging
import os
import platform
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from services.base.errors import UserError, first_line
from services.base.storage import Folder
from system import __version__

log = logging.getLogger(__name__)

STATE_FILE, RECIPE_FILE, MANIFEST_FILE = "state.json", "recipe.yaml", "manifest.json"
DRIVER_FILE = "driver"
"""Beside the checkpoints: the driver that may write them."""
NAME = re.compile(r"step_(\d{6,})")
DAMAGE = (ValueError, TypeError, AttributeError, KeyError, FileNotFoundError)
"""What reading a torn or altered file raises; other OSErrors are the storage's, which may have the file yet."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands after a whole step."""

    step: int = 0
    """Steps done; also the policy version."""
    nfe: int = 0
    decodes: int = 0
    scores: int = 0
    elapsed_s: float = 0.0
    heldout: float | None = None
    """Held-out reward of this step's policy, where it was evaluated."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. That of step 0 holds no weights, since they follow from the recipe."""

    folder: Folder
    state: RunState
    recipe: str
    """The config.yaml of the run that wrote it."""


class Damaged(Exception):
    """A checkpoint is torn or altered, or was never sealed; says why."""


class Checkpoints:
    """The checkpoints of a run, one folder each.

    Args:
        folder: on any storage.
        keep: so many newest ones are kept, and the one with the best held-out reward.
    """

    def __init__(self, folder: Folder, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.driver = f"{platform.node()} {os.getpid()} {uuid.uuid4().hex}"
        self._whole: dict[str, RunState] = {}
        """Those that this process has written or verified."""

    def claim(self) -> None:
        """Let this driver be the one that writes here. One that did so before, maybe on another machine, is refused
        from now on, so that two of them never interleave.
        """
        self.folder.write(DRIVER_FILE, self.driver.encode())

    def check_claim(self) -> None:
        """Refuse what another driver has taken over.

        Raises:
            UserError: another driver has taken over.
            OSError: the claim cannot be read.
        """
        driver = self.folder.read(DRIVER_FILE).decode(errors="replace")
        if driver != self.driver:
            host, process, *_ = [*driver.split(), "?", "?"]
            raise UserError(
                f"another driver has taken over the checkpoints in {self.folder} (process {process} on {host}), and "
                "this one ends; let one driver at a time work on a run"
            )

    def begin(self, step: int) -> Folder:
        """An empty folder for the learner's files; without `commit` it counts for nothing.

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
        """Seal a checkpoint whose files are written, and then remove those that are not kept.

        Args:
            sha256: of each of the learner's files.
            recipe: the run's config.yaml.

        Raises:
            UserError: another driver has taken over.
            OSError: the storage failed. A failure to remove an old checkpoint is only logged.
        """
        folder = self._of(state.step)
        sealed = dict(sha256)
        sealed[STATE_FILE] = folder.write(STATE_FILE, json.dumps(asdict(state), indent=1).encode())
        sealed[RECIPE_FILE] = folder.write(RECIPE_FILE, recipe.encode())
        manifest = {"tempflow": __version__, "sha256": dict(sorted(sealed.items()))}
        self.check_claim()
        folder.write(MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
        self._whole[_name(state.step)] = state
        try:
            self._forget()
        except OSError as error:
            log.warning("old checkpoints in %s are not removed: %s", self.folder, first_line(error))

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint; torn or altered ones are passed over, and the log says so.

        Raises:
            UserError: all that were sealed are torn or altered.
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
                log.warning("checkpoint %s is not usable (%s); trying the one before it", folder, damage)
        self._refuse(damaged)
        return None

    def recipe(self) -> str | None:
        """The config.yaml of the run that the newest readable one is of; None if there are no checkpoints.

        Raises:
            UserError: all that were sealed are torn or altered.
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
        """Checkpoints that were sealed and are all damaged, newest first, are not the same as none."""
        sealed = [name for name in damaged if MANIFEST_FILE in (self.folder / name).names()]
        if sealed:
            raise UserError(
                f"no checkpoint in {self.folder} is usable; of {len(sealed)} the newest is {sealed[0]} "
                f"({damaged[sealed[0]]}): put a whole one back, or give a new run another name=…"
            )

    def _of(self, step: int) -> Folder:
        return self.folder / _name(step)

    def _names(self) -> list[str]:
        """In the order of their steps. Files, and folders of other names, are not ours."""
        found = [name for name in self.folder.folders() if NAME.fullmatch(name) and name == _name(_step(name))]
        return sorted(found, key=_step)

    def _forget(self) -> None:
        """Remove what is not kept. Only whole checkpoints count: damaged ones must not crowd them out.

        The newest are verified until there are enough, and of the others only those that claim to be better.
        """
        names = self._names()
        kept: list[str] = []
        for name in reversed(names):
            if len(kept) < self.keep and self._is_whole(name):
                kept.append(name)
        scores = {name: heldout for name in names if (heldout := self._heldout(name)) is not None}
        by_score = sorted(scores, key=lambda name: (scores[name], -_step(name)), reverse=True)
        best = next((name for name in by_score if name in kept or self._is_whole(name)), None)
        for name in set(names) - {*kept, best}:
            (self.folder / name).remove()
            self._whole.pop(name, None)

    def _heldout(self, name: str) -> float | None:
        """What a checkpoint says of its held-out reward, not verified; None where it says nothing."""
        if name in self._whole:
            return self._whole[name].heldout
        try:
            return RunState(**json.loads((self.folder / name).read(STATE_FILE))).heldout
        except DAMAGE:
            return None

    def _is_whole(self, name: str) -> bool:
        """Whether this process has written it, or finds it whole; it is read once."""
        if name not in self._whole:
            try:
                self._whole[name] = _verified(self.folder / name)
            except Damaged as damage:
                log.warning("checkpoint %s is not usable (%s) and is removed", self.folder / name, damage)
        return name in self._whole


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _step(name: str) -> int:
    return int(name.removeprefix("step_"))


def _manifest(folder: Folder) -> dict[str, str]:
    """SHA-256 by file.

    Raises:
        Damaged: it cannot be read, or lacks a file that every checkpoint has.
    """
    try:
        expected_of = json.loads(folder.read(MANIFEST_FILE))["sha256"]
        missing = {STATE_FILE, RECIPE_FILE} - expected_of.keys()
    except DAMAGE as error:
        raise Damaged(f"{type(error).__name__}: {first_line(error)}") from error
    if missing:
        raise Damaged(f"its manifest has no {', '.join(sorted(missing))}")
    return expected_of


def _check(folder: Folder, expected_of: Mapping[str, str]) -> None:
    """Compare files with their checksums.

    Raises:
        Damaged: one differs or is missing.
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
    """The state of a checkpoint all of whose files match their checksums.

    Raises:
        Damaged: one does not.
        OSError: the storage cannot be read.
    """
    _check(folder, _manifest(folder))
    try:
        state = RunState(**json.loads(folder.read(STATE_FILE)))
    except DAMAGE as error:
        raise Damaged(f"{type(error).__name__}: {first_line(error)}") from error
    if not folder.path.endswith(f"/{_name(state.step)}"):
        raise Damaged(f"its state is of step {state.step}")
    return state
