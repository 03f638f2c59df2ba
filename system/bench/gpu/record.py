"""What a part has found, written to the disk with every finding. No Torch."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from services.base.errors import UserError, first_line
from services.base.storage import write_atomically
from system.bench.gpu.parts import GRACE_S

Cell = str | int | float | bool | None


class State(StrEnum):
    """How a part ended."""

    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"


@dataclass
class Check:
    """Something that must hold."""

    name: str
    passed: bool
    said: str
    """The figures, in words."""


@dataclass
class Table:
    """Measured rows. A cell that is missing is shown as a dash."""

    title: str
    rows: list[dict[str, Cell]] = field(default_factory=list)


@dataclass
class Findings:
    """What one part has found."""

    device: str
    """The device in words."""
    small: bool
    """Whether sizes were cut because there is no GPU."""
    made_by: str
    """Version and commit of tempflow."""
    state: State = State.RUNNING
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences about what was left out, and why."""
    card: dict[str, Any] | None = None
    """The card's measured rates, which only the part `card` has."""
    traceback: str | None = None
    """The traceback of the error that ended the part."""

    @classmethod
    def load(cls, path: Path) -> Findings:
        """Read what a part has written.

        Raises:
            UserError: it is something else.
        """
        try:
            raw = json.loads(path.read_text())
            return cls(
                **{
                    **raw,
                    "state": State(raw["state"]),
                    "checks": [Check(**check) for check in raw["checks"]],
                    "tables": [Table(**table) for table in raw["tables"]],
                }
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a result of `tempflow bench gpu` ({error}); delete it") from error

    def save(self, path: Path) -> None:
        write_atomically(path, f"{json.dumps(asdict(self), indent=1)}\n".encode())


class Record:
    """Where a part puts its findings.

    Args:
        path: the file that holds them after each one.
        findings: with the device and tempflow's version filled in.
        device: `cpu` or `cuda`.
        bound_s: seconds after which no new row begins.
    """

    def __init__(self, path: Path, findings: Findings, device: str, bound_s: float) -> None:
        self.path, self.findings, self.device, self.bound_s = path, findings, device, bound_s
        self.started = time.monotonic()
        self.save()

    @property
    def small(self) -> bool:
        return self.findings.small

    @property
    def left_s(self) -> float:
        """Seconds until the part is ended by force."""
        return self.bound_s + GRACE_S - (time.monotonic() - self.started)

    def save(self) -> None:
        self.findings.seconds = round(time.monotonic() - self.started, 2)
        self.findings.save(self.path)

    def check(self, name: str, passed: bool, said: str) -> None:
        """Something that must hold, and whether it does."""
        self.findings.checks.append(Check(name, bool(passed), said))
        self.save()

    def row(self, title: str, **cells: Cell) -> None:
        """A row of the table with this title."""
        for table in self.findings.tables:
            if table.title == title:
                break
        else:
            self.findings.tables.append(table := Table(title))
        table.rows.append(cells)
        self.save()

    def note(self, sentence: str) -> None:
        self.findings.notes.append(sentence)
        self.save()

    def has_time(self, what: str) -> bool:
        """Whether `what` may still begin; if not, the findings say that it was left out."""
        if time.monotonic() - self.started < self.bound_s:
            return True
        self.note(f"{what[:1].upper()}{what[1:]} was left out: the part had used its {self.bound_s:.0f} seconds.")
        return False

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """The work on one row: an error that it raises is a failed check, and the next row follows.

        The traceback is in the output of the part's process.
        """
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.check(what, False, f"{type(error).__name__}: {first_line(error)}")

    @contextmanager
    def ending(self) -> Iterator[None]:
        """The part's work: an error that it raises is recorded with its traceback, and any failed check fails it."""
        try:
            yield
        except Exception:
            self.findings.traceback = traceback.format_exc()
        passed = self.findings.traceback is None and all(check.passed for check in self.findings.checks)
        self.findings.state = State.PASSED if passed else State.FAILED
        self.save()
