"""The mean rewards of the training prompts over the steps of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from system.report.data import number
from system.watch.experience import prompt_means
from system.watch.step_tables import changed_ns, read_table

SCANNED = 40
"""Files of experience that one look reads, the newest first."""
MAX_PROMPTS = 300
"""Prompts whose history is shown: those that were used last."""


@dataclass
class Prompt:
    """What was seen of one training prompt."""

    text: str
    means: dict[int, float] = field(default_factory=dict)
    """Mean reward by training step."""


class PromptHistory:
    """What was seen of the prompts. Each look reads some files of experience, until all are read."""

    def __init__(self) -> None:
        self._files = 0
        """The number of files at the last look."""
        self._scanned: dict[int, int] = {}
        """The steps whose prompts are known, with the time of the file's last change in ns."""
        self._prompts: dict[int, Prompt] = {}

    def read(self, files: Mapping[int, Path]) -> None:
        """Read the newest files that are new or have changed, and forget the steps whose file is missing.

        Args:
            files: the files of experience by step.
        """
        self._files = len(files)
        stale = [step for step in self._scanned if step not in files]
        unread = [step for step in sorted(files, reverse=True) if self._scanned.get(step) != changed_ns(files[step])]
        for step in [*stale, *unread[:SCANNED]]:
            self._scanned.pop(step, None)
            for prompt in self._prompts.values():
                prompt.means.pop(step, None)
        for step in unread[:SCANNED]:
            changed, table = changed_ns(files[step]), read_table(files[step], ["prompt_row", "prompt", "reward"])
            if table is None or changed is None:
                continue
            self._scanned[step] = changed
            for row, (text, mean) in prompt_means(table).items():
                self._prompts.setdefault(row, Prompt(text)).means[step] = mean

    def describe(self) -> dict[str, Any]:
        """The history of the prompts that were used last, and the number of the steps that were read."""
        seen = [(row, prompt) for row, prompt in self._prompts.items() if prompt.means]
        newest = sorted(seen, key=lambda item: -max(item[1].means))[:MAX_PROMPTS]
        return {
            "read": len(self._scanned),
            "of": self._files,
            "count": len(seen),
            "prompts": [
                {
                    "row": row,
                    "prompt": prompt.text,
                    "steps": sorted(prompt.means),
                    "means": [number(prompt.means[step]) for step in sorted(prompt.means)],
                }
                for row, prompt in newest
            ],
        }
