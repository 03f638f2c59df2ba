"""Reads what was added to a file of lines since the last look."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tail:
    """The new whole lines of a file that grows.

    A file that was rewritten, as metrics.jsonl is when a run resumes, is read again from its start. That is noticed
    because the line that was read last is no longer in its place.
    """

    path: Path
    offset: int = 0
    """Bytes read so far, up to the end of a line."""
    last: bytes = field(default=b"", repr=False)
    """The line that ends there."""

    def read(self) -> tuple[bool, list[bytes]]:
        """Whether the file begins again, and the lines since the last look, without an unfinished last line.

        Raises:
            OSError: the storage failed. A missing file is an empty one.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset - len(self.last))
                content = file.read()
                again = not content.startswith(self.last)
                if again:
                    file.seek(0)
                    content = file.read()
        except FileNotFoundError:
            again, content = self.offset > 0, b""
        if again:
            self.offset, self.last = 0, b""
        added = content[len(self.last) :]
        whole = added[: added.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        if lines:
            self.offset, self.last = self.offset + len(whole), lines[-1]
        return again, [line for line in lines if line.strip()]
