"""The recipe as a run records it, in config.yaml and in each checkpoint: with the run's identity and its inputs."""

import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from services.errors import UserError, first_line
from system import __version__
from system.config import RunConfig, parse_config

MAY_CHANGE: dict[str, set[str] | bool] = {
    **dict.fromkeys(("steps", "output", "eval", "checkpoint", "log", "ray"), True),
    "reward": {"max_hole_share", "concurrency"},
}
"""Settings that a resumed run may change: none of them enters the arithmetic of a step."""


@dataclass(frozen=True)
class Recorded:
    """A recipe, the run that it began, and what it named then."""

    config: RunConfig
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Drawn at random when a run begins, so that two runs of one name and recipe are told apart."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Fingerprints of files and models, by the key that names them (inputs.py)."""

    def text(self) -> str:
        """The YAML of it; `tempflow` comes last, so that a file without it is torn."""
        by = {"version": __version__, "commit": git_commit(), "inputs": self.inputs, "run": self.run}
        return yaml.safe_dump(
            self.config.model_dump(mode="json") | {"tempflow": by}, sort_keys=False, allow_unicode=True
        )


def read_recorded(text: str, source: str) -> Recorded:
    """Read what `text` wrote.

    Raises:
        UserError: it is torn, or something else; names the source.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not the recipe of a run: {first_line(error)}") from error
    by = raw.pop("tempflow", None) if isinstance(raw, dict) else None
    if not isinstance(by, dict) or not isinstance(by.get("run"), str) or not isinstance(by.get("inputs"), dict):
        raise UserError(f"{source}: not the recipe of a run: its end, with the run's identity, is missing")
    return Recorded(parse_config(RunConfig, raw, source), by["run"], by["inputs"])


def check_same(before: RunConfig, now: RunConfig, what: str) -> None:
    """Refuse to continue with another recipe than a run began with.

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
