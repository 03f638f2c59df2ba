"""Reads files of rows with named columns: Parquet, JSON lines, JSON arrays, CSV, TSV, and text (one row per line)."""

import csv
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, overload

import pyarrow as pa
import pyarrow.parquet as pq

from services.base.errors import UserError, first_line
from services.base.paths import resolve_model
from services.base.text import is_unicode, read_text, split_lines

ROWS_AT_ONCE = 2**16


class FileRows(Protocol):
    """The rows of a file in order. Values are of the kinds that JSON has: texts, numbers, booleans, None, and lists and
    mappings of them. Parquet columns of another type, such as bytes and dates, are not in the rows.
    """

    @property
    def columns(self) -> list[str]:
        """The names of all columns."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> dict[str, Any]:
        """A row as a mapping from column to value. A column without a value in this row may be missing."""
        ...

    def place(self, row: int) -> str:
        """The place of a row in the file, for messages."""
        ...

    def texts(self, column: str) -> Sequence[str]:
        """A column of texts.

        Raises:
            UserError: a row has no text in this column. The message names the row.
        """
        ...

    def categories(self, column: str) -> Sequence[str | None]:
        """A column of texts, numbers or booleans, converted to texts; None if a row has no value.

        Raises:
            UserError: the column contains lists, mappings or bytes.
        """
        ...


def read_rows(name: str, what: str, text_column: str) -> FileRows:
    """Read a file in the format that its suffix names, in upper or lower case.

    Args:
        name: a path, or `package:NAME/PATH`.
        what: the kind of file, for the message if it is missing.
        text_column: the name of the only column of a text file (`.txt` or no suffix).

    Raises:
        UserError: the file is missing, cannot be read, or does not have the format of its suffix.
    """
    path = Path(resolve_model(name)).expanduser()
    if not path.is_file():
        raise UserError(f"there is no {what} at `{name}`; correct the path")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetRows(path)
    if suffix in {".txt", ""}:
        return _from_lines(path, text_column)
    if suffix not in READERS:
        known = ", ".join((".parquet", *READERS, ".txt"))
        raise UserError(f"`{name}` has the suffix {path.suffix}, which is not supported; use one of {known}")
    return RowList.of(str(path), READERS[suffix](path, read_text(path)))


@dataclass(frozen=True)
class RowList:
    """Rows in memory."""

    name: str
    columns: list[str]
    rows: list[dict[str, Any]]
    places: list[str]

    @classmethod
    def of(cls, name: str, placed: Iterable[tuple[str, dict[str, Any]]]) -> "RowList":
        """Make rows from pairs of a place and a row. The columns are those of all rows together."""
        places, rows, columns = [], [], {}
        for place, row in placed:
            places.append(place)
            rows.append(row)
            columns.update(dict.fromkeys(row))
        return cls(name, list(columns), rows, places)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return dict(self.rows[row])

    def place(self, row: int) -> str:
        return self.places[row]

    def texts(self, column: str) -> list[str]:
        texts = [row.get(column) for row in self.rows]
        for text, place in zip(texts, self.places, strict=True):
            if not isinstance(text, str):
                said = "is missing" if text is None else f"is {_short(text)}, not text"
                raise UserError(f"`{self.name}`, {place}: `{column}` {said}; correct it")
        return texts  # type: ignore[return-value]

    def categories(self, column: str) -> list[str | None]:
        values = [row.get(column) for row in self.rows]
        for value, place in zip(values, self.places, strict=True):
            if isinstance(value, list | dict):
                raise UserError(f"`{self.name}`, {place}: `{column}` is {_short(value)}; make it text or a number")
        return [_category(value) for value in values]


class ParquetRows:
    """Rows of a Parquet file of any size. Columns in use are memory-mapped, so that any row can be read directly."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = pq.ParquetFile(path, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        self.columns: list[str] = self.file.schema_arrow.names
        _check_header(str(path), self.columns)

    def __len__(self) -> int:
        return self.file.metadata.num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._all.slice(row, 1).to_pylist()[0]

    def place(self, row: int) -> str:
        return f"row {row + 1}"

    def texts(self, column: str) -> "ArrowTexts":
        values = self._mapped([column])[column]
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            raise UserError(f"`{self.path}`: column `{column}` contains {values.type}; convert it to text")
        if values.null_count:
            first = values.is_null().index(True).as_py()
            raise UserError(f"`{self.path}`, {self.place(first)}: `{column}` is missing; add it")
        return ArrowTexts(values)

    def categories(self, column: str) -> "ArrowTexts":
        values = self._mapped([column])[column]
        if pa.types.is_nested(values.type) or "binary" in str(values.type):
            raise UserError(f"`{self.path}`: column `{column}` contains {values.type}; convert it to text or numbers")
        return ArrowTexts(values)

    @cached_property
    def _all(self) -> pa.Table:
        """The columns with values that JSON has, mapped when the first row is read."""
        return self._mapped([field.name for field in self.file.schema_arrow if _is_plain(field.type)])

    def _mapped(self, columns: list[str]) -> pa.Table:
        """Stream columns into an Arrow file in the temporary folder (TMPDIR), and map it. Only this process sees it."""
        try:
            with tempfile.NamedTemporaryFile(prefix="tempflow-", suffix=".arrow") as mapped:
                schema = pa.schema([_decoded(self.file.schema_arrow.field(column)) for column in columns])
                with pa.ipc.new_file(mapped.name, schema) as writer:
                    for batch in self.file.iter_batches(ROWS_AT_ONCE, columns=columns):
                        batch = pa.record_batch([_cast(batch[field.name], field) for field in schema], schema)
                        batch.validate(full=True)  # texts are UTF-8
                        writer.write_batch(batch)
                return pa.ipc.open_file(pa.memory_map(mapped.name)).read_all()
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"`{self.path}` is not a readable Parquet file ({first_line(error)}); write it again")


class ArrowTexts(Sequence[Any]):
    """An Arrow column whose values are read as texts, one at a time."""

    def __init__(self, values: pa.ChunkedArray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, row: int) -> Any: ...
    @overload
    def __getitem__(self, row: slice) -> "ArrowTexts": ...
    def __getitem__(self, row: int | slice) -> Any:
        return ArrowTexts(self.values[row]) if isinstance(row, slice) else _category(self.values[row].as_py())


def _is_plain(kind: pa.DataType) -> bool:
    """Whether JSON has values of this type."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type)
    if types.is_struct(kind):
        return all(_is_plain(member.type) for member in kind)
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return texts or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)


def _decoded(field: pa.Field) -> pa.Field:
    """The field with plain values instead of indexes into a dictionary, and plain texts instead of views of texts."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return field.with_type(pa.large_string() if pa.types.is_string_view(kind) else kind)


def _cast(values: pa.Array, field: pa.Field) -> pa.Array:
    return values if values.type == field.type else values.cast(field.type)


def _from_lines(path: Path, column: str) -> RowList:
    """Read one row per line. Blank lines are skipped, and blanks around a text are removed."""
    lines = [(f"line {number}", line.strip()) for number, line in enumerate(split_lines(read_text(path)), 1)]
    return RowList.of(str(path), [(place, {column: line}) for place, line in lines if line])


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            place = f"line {number}"
            yield place, _object(path, place, _json(f"`{path}`, {place}", line), line)


def _json_array(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    array = _json(f"`{path}`", text)
    if not isinstance(array, list):
        raise UserError(
            f"`{path}`: a .json file must be an array of objects; name a file with one object per line .jsonl"
        )
    for number, row in enumerate(array, 1):
        yield f"row {number}", _object(path, f"row {number}", row, text)


def _json(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{what}: not JSON: {error.msg} (column {error.colno}); correct it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: not JSON that can be read ({error}); correct it") from error


def _object(path: Path, place: str, row: Any, source: str) -> dict[str, Any]:
    """Check that a row is an object with valid Unicode texts, and return it. `source` is the JSON that contains it."""
    if not isinstance(row, dict):
        raise UserError(f"`{path}`, {place}: a row must be an object with columns, not {_short(row)}")
    if "\\ud" in source.lower() and not is_unicode(json.dumps(row, ensure_ascii=False)):
        raise UserError(
            f"`{path}`, {place}: a text contains half of a surrogate pair, which is not a character; correct it"
        )
    return row


def _csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return _table(path, text, ",")


def _tsv(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return _table(path, text, "\t")


def _table(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the rows below a header. Cells may be quoted, also in TSV. Empty cells are None; blank lines are skipped."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            place = f"line {reader.line_num}"
            if cells and not header:
                header = cells
                _check_header(str(path), header)
            elif cells:
                if len(cells) != len(header):
                    raise UserError(
                        f"`{path}`, {place}: {len(cells)} cells below a header of {len(header)} columns; "
                        "make them equal"
                    )
                yield place, {column: cell or None for column, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        hint = "quote a cell that begins with a quote or contains a line break, as in CSV"
        raise UserError(f"`{path}`, line {reader.line_num}: {error}; {hint}") from error


READERS = {".jsonl": _json_lines, ".json": _json_array, ".csv": _csv, ".tsv": _tsv}


def _check_header(name: str, columns: Sequence[str]) -> None:
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise UserError(f"`{name}` has two columns `{twice[0]}`; rename one")


def _category(value: Any) -> str | None:
    """A value as a text; None stays None."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if value is None or isinstance(value, str) else str(value)


def _short(value: Any) -> str:
    """A value, shortened for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"
