"""Parquet files of steps, which a run may be writing while they are read."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from system.report.data import UNREADABLE

KEPT_TABLES = 6
"""Tables of experience, pictures and evaluations that stay in memory."""


class KeptTables:
    """Reads tables, and keeps the last ones that it has read."""

    def __init__(self) -> None:
        self._tables: dict[tuple[Path, int], pa.Table] = {}

    def read(self, file: Path) -> pa.Table | None:
        """A table, from memory if its file has not changed; None if it is missing or torn."""
        changed = changed_ns(file)
        if changed is None:
            return None
        key = (file, changed)
        if key not in self._tables:
            table = read_table(file)
            if table is None:
                return None
            self._tables[key] = table
            while len(self._tables) > KEPT_TABLES:
                self._tables.pop(next(iter(self._tables)))
        return self._tables[key]


def read_table(file: Path, columns: list[str] | None = None) -> pa.Table | None:
    """A table; None if it is missing or torn."""
    try:
        return pq.read_table(file, columns=columns)
    except (*UNREADABLE, KeyError):
        return None


def changed_ns(file: Path) -> int | None:
    """The time of the last change of a file in ns; None if it is missing."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
