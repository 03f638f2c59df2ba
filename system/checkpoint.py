"""Checkpoints: everything the next step needs, written aside, checksummed, and moved into place."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from system import __version__

log = logging.getLogger(__name__)

STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"


@dataclass
class RunState:
    """Where a run stands after a whole step."""

    step: int = 0
    """Steps done; also the policy version."""
    nfe: int = 0
    decodes: int = 0
    scores: int = 0
    elapsed_s: float = 0.0


def save_checkpoint(root: Path, state: RunState, save_learner: Callable[[str], None], keep: int) -> Path:
    """Write `root/step_N`; older ones beyond `keep` are removed.

    Args:
        save_learner: writes the learner's files into the folder it is given.
    """
    target = root / f"step_{state.step:06d}"
    aside = root / f".{target.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_learner(str(aside))
    (aside / STATE_FILE).write_text(json.dumps(asdict(state), indent=1))
    manifest = {
        "tempflow": __version__,
        "sha256": {path.name: _sha256(path) for path in sorted(aside.iterdir())},
    }
    (aside / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    for old in _folders(root)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(root: Path) -> tuple[Path, RunState] | None:
    """The newest whole checkpoint; torn or altered ones are passed over, and the log says so."""
    for folder in reversed(_folders(root)):
        problem = _problem(folder)
        if problem is None:
            return folder, RunState(**json.loads((folder / STATE_FILE).read_text()))
        log.warning("checkpoint %s is not usable (%s); trying the one before it", folder, problem)
    return None


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step_*") if path.is_dir())


def _problem(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        for name, expected in manifest["sha256"].items():
            if _sha256(folder / name) != expected:
                return f"{name} does not match its checksum"
    except (OSError, json.JSONDecodeError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
