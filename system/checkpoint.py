"""Checkpoints: everything the next step needs, sealed by a manifest of checksums that is written last."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from services.errors import UserError, first_line
from services.storage import Folder
from system import __version__

log = logging.getLogger(__name__)

STATE_FILE, RECIPE_FILE, MANIFEST_FILE = "state.json", "recipe.yaml", "manifest.json"
PREFIX = "step_"
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


class Checkpoints:
    """The checkpoints of a run, one folder each.

    Args:
        folder: on any storage.
        keep: so many newest ones are kept, and the one with the best held-out reward.
    """

    def __init__(self, folder: Folder, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def begin(self, step: int) -> Folder:
        """An empty folder for the learner's files; without `commit` it counts for nothing."""
        folder = self._of(step)
        folder.remove()
        return folder

    def commit(self, state: RunState, sha256: Mapping[str, str], recipe: str) -> None:
        """Seal a checkpoint whose files are written, and remove those that are not kept.

        Args:
            sha256: of each of the learner's files.
            recipe: the run's config.yaml.
        """
        folder = self._of(state.step)
        sealed = dict(sha256)
        sealed[STATE_FILE] = folder.write(STATE_FILE, json.dumps(asdict(state), indent=1).encode())
        sealed[RECIPE_FILE] = folder.write(RECIPE_FILE, recipe.encode())
        manifest = {"tempflow": __version__, "sha256": dict(sorted(sealed.items()))}
        folder.write(MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
        self._forget()

    def latest(self) -> tuple[Folder, RunState] | None:
        """The newest whole checkpoint; torn or altered ones are passed over, and the log says so.

        Raises:
            UserError: all that were sealed are torn or altered.
            OSError: the storage cannot be read.
        """
        damaged = []
        for name in reversed(self._names()):
            folder = self.folder / name
            problem = _problem(folder)
            if problem is None:
                return folder, _state(folder)
            log.warning("checkpoint %s is not usable (%s); trying the one before it", folder, problem)
            damaged += [name] if MANIFEST_FILE in folder.names() else []
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} is usable, {damaged[0]} the newest of {len(damaged)} (logs/driver.log "
                "says why); put one back, or remove them all to begin again"
            )
        return None

    def recipe(self) -> str | None:
        """The config.yaml of the run that they are of; None if there are none."""
        for name in reversed(self._names()):
            if RECIPE_FILE in (self.folder / name).names():
                return (self.folder / name).read(RECIPE_FILE).decode(errors="replace")
        return None

    def _of(self, step: int) -> Folder:
        return self.folder / f"{PREFIX}{step:06d}"

    def _names(self) -> list[str]:
        return [name for name in self.folder.names() if name.startswith(PREFIX)]

    def _forget(self) -> None:
        names = self._names()
        states = {name: state for name in names if (state := _sealed(self.folder / name))}
        evaluated = {name: state.heldout for name, state in states.items() if state.heldout is not None}
        best = [max(evaluated, key=lambda name: evaluated[name])] if evaluated else []
        for name in set(names) - {*sorted(states)[-self.keep :], *best}:
            (self.folder / name).remove()


def _state(folder: Folder) -> RunState:
    return RunState(**json.loads(folder.read(STATE_FILE)))


def _sealed(folder: Folder) -> RunState | None:
    """The state of a checkpoint that was sealed; None for one that was not, or is torn."""
    try:
        return _state(folder) if MANIFEST_FILE in folder.names() else None
    except DAMAGE as error:
        log.warning("checkpoint %s is not usable (%s) and is removed", folder, first_line(error))
        return None


def _problem(folder: Folder) -> str | None:
    try:
        expected_of = json.loads(folder.read(MANIFEST_FILE))["sha256"]
        if missing := {STATE_FILE, RECIPE_FILE} - expected_of.keys():
            return f"its manifest has no {', '.join(sorted(missing))}"
        for name, expected in expected_of.items():
            if folder.sha256(name) != expected:
                return f"{name} does not match its checksum"
    except DAMAGE as error:
        return f"{type(error).__name__}: {error}"
    return None
