"""The recipe with the run's identity and its inputs, as a run records it in config.yaml and in each checkpoint."""

import subprocess
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.base.errors import UserError
from services.base.yaml_text import dump_yaml, load_yaml
from services.scoring.scorer import own_folders
from system import __version__
from system.recipe.load import OF_RUN, parse_config
from system.recipe.model import RunConfig

FREE = (
    *("name", "output", "steps", "eval", "checkpoint", "log", "ray", "placement"),
    *("reward.max_hole_share", "reward.concurrency", "policy.gradient_checkpointing"),
    *("rollout.workers", "rollout.max_workers", "rollout.num_cpus", "rollout.labels"),
    *("rollout.max_bytes_in_flight", "rollout.embedding_bytes", "rollout.embedding_folder"),
    *("rollout.offload_text_encoders", "rollout.task_timeout_s"),
    *("learner.num_cpus", "learner.labels", "learner.update_timeout_s", "learner.max_drift", "learner.optimizer"),
)
"""Settings that a resumed run may change, with all settings below them. None affects the arithmetic of a step."""

ROUNDING = (
    *("rollout.micro_batch", "rollout.decode_batch", "rollout.threads", "rollout.merge_adapter"),
    *("learner.micro_batch", "learner.threads", "learner.ranks", "learner.shard"),
    *("policy.compile", "policy.attention", "policy.device", "deterministic", "rollout.num_gpus", "learner.num_gpus"),
)
"""Further settings that a resumed run may change. They can change how results are rounded, so the weights may no longer
be the same bit for bit as without the change."""

MAX_CHARS = 80
"""Longer values are cut to this length in messages."""


@dataclass(frozen=True)
class Recorded:
    """A recipe, the run that began with it, and the inputs that it named then."""

    config: RunConfig
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    """The run's identity: a random text that distinguishes two runs of the same name and recipe."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Fingerprints of files and models, by the key that names them (inputs.py)."""
    folders: list[str] = field(default_factory=own_folders)
    """Folders that scorers are imported from, so that the run folder alone is enough to resume."""

    def text(self) -> str:
        """The record as YAML. The key `tempflow` comes last, so that a file without it is known to be torn."""
        of_run = {
            "version": __version__,
            "commit": git_commit(),
            "folders": self.folders,
            "inputs": self.inputs,
            "run": self.run,
        }
        return dump_yaml(self.config.model_dump(mode="json") | {OF_RUN: of_run})


def read_recorded(text: str, source: str) -> Recorded:
    """Read a record that `Recorded.text` made.

    Raises:
        UserError: the text is torn, or is not such a record. The message names the source.
    """
    raw = load_yaml(text, source)
    found = raw.pop(OF_RUN, None) if isinstance(raw, dict) else None
    of_run = found if isinstance(found, dict) else {}
    if not isinstance(of_run.get("run"), str) or not isinstance(of_run.get("inputs"), dict):
        raise UserError(
            f"{source} is not the complete recipe of a run, because its end with the run's identity is missing; "
            "restore it"
        )
    return Recorded(parse_config(RunConfig, raw, source), of_run["run"], of_run["inputs"])


def check_same(before: RunConfig, now: RunConfig, what: str) -> None:
    """Refuse to continue a run with another recipe than it began with.

    Raises:
        UserError: settings differ. The message names each with its old and new value.
    """
    changed = [said for key, said in differences(before, now).items() if not _among(key, (*FREE, *ROUNDING))]
    if changed:
        raise UserError(
            f"{what} began with other settings: {'; '.join(changed)}. Resume with the same recipe and overrides ("
            "`tempflow train FOLDER --resume` reads both from the run folder), or start a new run with another name=… "
            "(from this one's weights with policy.adapter=FOLDER/lora)"
        )


def rounding_differences(before: RunConfig, now: RunConfig) -> list[str]:
    """The changed settings that affect rounding, each as a text with the key, the old and the new value."""
    return [said for key, said in differences(before, now).items() if _among(key, ROUNDING)]


def _among(key: str, settings: Iterable[str]) -> bool:
    """Whether a key is one of the settings or below one of them."""
    return any(f"{key}.".startswith(f"{setting}.") for setting in settings)


def differences(before: RunConfig, now: RunConfig) -> dict[str, str]:
    """The differences between two recipes: by key, a text with the key, the old and the new value."""
    return dict(_differences(before.model_dump(), now.model_dump(), ""))


def _differences(before: Any, now: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        for i, both in enumerate(zip(before, now, strict=True)):
            yield from _differences(*both, f"{key}.{i}")
    elif before != now:
        yield key, f"{key} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}…"


def git_commit() -> str | None:
    """The commit of the running checkout, with `-dirty` if files were changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
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
