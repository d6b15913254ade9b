"""Columns of imported files: one type for all files, chosen so that no cell changes."""

from __future__ import annotations

import io
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from reembed.errors import SourceError

ID_COLUMNS = ("_id", "id", "doc_id")
"""Never numbers where the file has no types."""
COMPRESSIONS = (".gz", ".bz2", ".zst")
BLOCK_BYTES = 8 << 20
"""About what is held of a file at a time."""
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Column:
    """A column of the new dataset. Type null: no file has a value in it."""

    name: str
    type: pa.DataType
    why: str | None = None
    """Why its type is not that of the files, or where it comes from."""
    from_path: bool = False
    files: frozenset[str] = frozenset()
    """The files that have it themselves."""
    clash: str | None = None
    """Why no one column holds it for all files; None if one does."""


Cells = tuple[int, dict[str, Any]]
"""Rows of a file: how many, and their cells by column, without the columns that the file lacks."""


class Format(Protocol):
    """One kind of file, read three times: to find the types, to write, to check what was written."""

    def survey(self, files: list[str]) -> list[Column]:
        """Return every column of every file, typed by all its cells; SourceErrors name file and row."""

    def typed(self, file: str, columns: list[Column]) -> Iterator[Cells]:
        """Yield the rows of one file: arrays of those columns, which it has, in their types."""

    def cells(self, file: str) -> Iterator[Cells]:
        """Yield the rows of one file again, read in another way than by `typed`."""

    def differs(self, cells: Any, written: pa.ChunkedArray) -> int | None:
        """Return the index of the first cell that is not what was written; None if all are."""


class Seen(Protocol):
    """What the cells of one column have been so far, and the column that holds all of them."""

    def add(self, cells: Any) -> None: ...

    def column(self, name: str) -> Column: ...


@dataclass
class Numbers:
    """The number types that a column of texts can have: those that give every text back, digit for digit."""

    origin: str
    """What the numbers are, in words."""
    types: list[pa.DataType] = field(default_factory=lambda: [pa.int64(), pa.float64()])
    filled: int = 0

    def add(self, texts: pa.Array) -> None:
        """Take more cells of the column into account; null and empty ones fit any type."""
        texts = texts.filter(pc.not_equal(texts, ""))  # drops null, too
        self.filled += len(texts)
        self.types = [t for t in self.types if _survives(texts, t)]

    def column(self, name: str) -> Column:
        """Return the column; it is text if no number type is left, or its name is that of an id."""
        if name in ID_COLUMNS or not self.types or not self.filled:
            return Column(name, pa.string())
        return Column(name, self.types[0], f"{self.origin} is a number that reads back unchanged")


def surveyed(
    files: list[str], cells: Callable[[str], Iterator[Cells]], seen: Callable[[], Seen]
) -> list[Column]:
    """Return every column of every file, typed by all its cells."""
    found: dict[str, Seen] = {}
    held: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for _, columns in cells(file):
            for name, values in columns.items():
                found.setdefault(name, seen()).add(values)
                held[name].add(file)
    return [replace(s.column(n), files=frozenset(held[n])) for n, s in found.items()]


def numbers(texts: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Return a column of texts in its type; empty texts become null, except in text."""
    if pa.types.is_string(kind):
        return texts
    return pc.if_else(pc.equal(texts, ""), None, texts).cast(kind)


def text_differs(texts: pa.Array, written: pa.ChunkedArray) -> int | None:
    """Return the index of the first cell that, written as text, is not the file's."""
    back = pc.fill_null(written.cast(pa.string()), "")
    return first_false(pc.equal(pc.fill_null(texts, ""), back))


def first_false(flags: pa.Array | pa.ChunkedArray) -> int | None:
    """Return the index of the first value that is false; None if all are true."""
    at = int(pc.index(flags, False).as_py())
    return at if at >= 0 else None


def same(value: Any, cell: Any) -> bool:
    """Return whether two values are the same, and of one kind: 1 is not True; NaN is NaN; -0.0 is not 0.0.

    A field that an object lacks is null.
    """
    if value is None or cell is None:
        return value is cell
    if isinstance(value, dict) and isinstance(cell, dict):
        return all(same(value.get(k), cell.get(k)) for k in {*value, *cell})
    if isinstance(value, list) and isinstance(cell, list):
        return len(value) == len(cell) and all(map(same, value, cell))
    if isinstance(value, float) and isinstance(cell, float):
        return repr(value) == repr(cell)
    return isinstance(value, bool) == isinstance(cell, bool) and bool(value == cell)


def first_other(values: list[Any], cells: list[Any]) -> int | None:
    """Return the index of the first pair that is not `same`."""
    pairs = zip(values, cells, strict=True)
    return next((at for at, (value, cell) in enumerate(pairs) if not same(value, cell)), None)


def opened(file: str) -> io.BufferedReader:
    """Return the bytes of a file, decompressed; SourceError if it is UTF-16."""
    stream = io.BufferedReader(pa.input_stream(file, compression="detect"), _BUFFER_BYTES)
    if stream.peek(2)[:2] in _UTF16:
        raise SourceError(f"{file} is UTF-16", "files are read as UTF-8", _iconv(file, "UTF-16"))
    return stream


def require_names(file: str, names: list[str]) -> None:
    """Refuse names that occur twice, since one column would be lost, and names in UTF-16."""
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise SourceError(
            f"{file} has more than one column {', '.join(map(repr, twice))}",
            "a dataset can have only one column of a name",
            f"head -n 1 {shlex.quote(file)}     # and rename one of them",
        )
    if any("\0" in n for n in names):
        raise SourceError(
            f"{file} has a zero byte in a column's name",
            "it is likely UTF-16; files are read as UTF-8",
            _iconv(file, "UTF-16LE"),
        )


def not_utf8(file: str, where: str, column: str | None = None) -> SourceError:
    """Return the error for bytes that are not text, with file, row and column."""
    return SourceError(
        f"{file}, {where}: {f'column {column!r}' if column else 'the line'} is not valid UTF-8",
        "text in another encoding could not be read back",
        _iconv(file, "WINDOWS-1252"),
    )


def _iconv(file: str, encoding: str) -> str | None:
    if file.endswith((*COMPRESSIONS, ".parquet")):
        return None
    path = Path(file)
    to = path.with_name(f"{path.stem}-utf8{path.suffix}")
    made = f"iconv -f {encoding} -t UTF-8 {shlex.quote(file)} > {shlex.quote(str(to))}"
    return f"{made}     # if {encoding} is its encoding"


def _survives(texts: pa.Array, kind: pa.DataType) -> bool:
    if not pc.all(pc.match_substring_regex(texts, _NUMBER), min_count=0).as_py():
        return False
    try:
        return bool(texts.cast(kind).cast(pa.string()).equals(texts))
    except pa.ArrowInvalid:  # beyond 64 bits
        return False


def shown_line(file: str, number: int) -> str | None:
    """Return the command that shows a line of a text file; None if the file is compressed."""
    if file.endswith(COMPRESSIONS):
        return None
    return f"sed -n {number}p {shlex.quote(file)}     # shows the line; correct it or remove it"
