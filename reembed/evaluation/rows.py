"""Rows of files that people keep evidence in: JSONL, TSV, Parquet and Lance, local or in an object store."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError

from reembed.errors import UsageError
from reembed.store.paths import is_remote
from reembed.store.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore.store import ObjectStore

TABLES = (".jsonl", ".jsonl.gz", ".parquet", ".lance")
Row = Mapping[str, Any]
_BATCH_ROWS = 65_536
"""Rows of a table that are Python objects at a time: a log may have millions."""


@dataclass(frozen=True)
class Place:
    """A file, or a folder of files."""

    uri: str
    options: dict[str, str]
    """Object-store settings, as Lance takes them."""
    what: str
    """What is expected there, for errors."""
    fix: str
    """What to do if it is not."""

    @classmethod
    def of(cls, uri: str, options: dict[str, str], what: str, fix: str) -> Place:
        """Return the place that a setting or an argument names."""
        return cls(uri.removeprefix("file://").rstrip("/") or uri, options, what, fix)

    def require(self) -> None:
        """Raise UsageError if a local place does not exist."""
        if not is_remote(self.uri) and not Path(self.uri).exists():
            raise self.missing()

    @property
    def is_table(self) -> bool:
        """Whether it is a file of rows with named columns."""
        return self.uri.endswith(TABLES)

    def rows(self, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
        """Yield each row of a table and where it is.

        Of Parquet and Lance only these columns are read; of JSONL a row has all of its fields.

        Raises:
            UsageError: the file cannot be read, or a line of it is not a JSON object.
        """
        if self.uri.endswith((".jsonl", ".jsonl.gz")):
            yield from jsonl_rows(self.uri, self.content())
            return
        batches = self.table(columns).to_batches(max_chunksize=_BATCH_ROWS)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, start=1):
            yield f"{self.uri}, row {number}", row

    def table(self, columns: Collection[str]) -> pa.Table:
        """Return these columns of a Parquet file or a Lance dataset, as far as it has them."""
        if self.uri.endswith(".lance"):
            return _python_times(self._lance_table(columns))
        return _python_times(_parquet_table(self.uri, self.content(), columns))

    def columns(self) -> list[str]:
        """Return the names of the columns of a Parquet file or a Lance dataset; none of JSONL."""
        if self.uri.endswith(".lance"):
            return list(self._lance().schema.names)
        if self.uri.endswith(".parquet"):
            return _parquet_columns(self.uri, self.content())
        return []

    def content(self) -> bytes:
        """Return the bytes of the file."""
        folder, slash, name = self.uri.rpartition("/")
        store = self._open(folder or slash or ".")
        with self.reading(self.uri):
            return bytes(store.get(name).bytes())

    def read(self, name: str) -> bytes:
        """Return the bytes of a file in the folder."""
        store = self._open(self.uri)
        with self.reading(f"{self.uri}/{name}"):
            return bytes(store.get(name).bytes())

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files in the folder, or in one of its folders."""
        store = self._open(self.uri)
        with self.reading(self.uri):
            listed = store.list_with_delimiter(folder or None)["objects"]
        return [entry["path"].rpartition("/")[2] for entry in listed]

    def missing(self, place: str = "", why: str = "nothing is there") -> UsageError:
        """Return the error that names a place and what to do."""
        return UsageError(f"{place or self.uri}: cannot read {self.what}", why, self.fix)

    @contextmanager
    def reading(self, place: str) -> Iterator[None]:
        """Raise a UsageError that names the place instead of an error of a disk, a store or Lance."""
        try:
            yield
        except FileNotFoundError:
            raise self.missing(place) from None
        except (BaseError, OSError, ValueError, UsageError) as error:
            raise self.missing(place, str(error).split("\n")[0]) from None

    def _open(self, folder: str) -> ObjectStore:
        place = folder
        if not is_remote(folder):
            place = str(Path(folder).resolve())
        with self.reading(folder):
            return Storage(place, tuple(sorted(self.options.items()))).store

    def _lance(self) -> Any:
        from reembed.store.lance import open_dataset

        with self.reading(self.uri):
            return open_dataset(self.uri, options=self.options)

    def _lance_table(self, columns: Collection[str]) -> pa.Table:
        dataset = self._lance()
        with self.reading(self.uri):
            return dataset.to_table(columns=[n for n in dataset.schema.names if n in columns])


def jsonl_rows(place: str, content: bytes) -> Iterator[tuple[str, Row]]:
    """Yield `place:number` and the object of each line that is not blank."""
    # str.splitlines would also break at U+2028, which JSON leaves as it is inside a text.
    for number, line in enumerate(text_in(place, content).split("\n"), start=1):
        if not line.strip():
            continue
        line_place = f"{place}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
            raise bad(line_place, f"not JSON: {error}") from None
        if not isinstance(row, dict):
            raise bad(line_place, "not a JSON object")
        yield line_place, row


def tsv_rows(place: str, content: bytes) -> Iterator[tuple[str, list[str]]]:
    """Yield `place:number` and the cells of each row that is not blank; a cell may be quoted."""
    text = io.StringIO(text_in(place, content), newline="")
    reader = csv.reader(text, delimiter="\t", strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"{place}:{reader.line_num}", cells
    except csv.Error as error:
        raise bad(f"{place}:{reader.line_num}", f"not tab-separated values: {error}") from None


def text_in(place: str, content: bytes) -> str:
    """Return the text of a file, decompressed if its name ends in .gz.

    Raises:
        UsageError: it is not UTF-8, or not gzip.
    """
    try:
        if place.endswith(".gz"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        why = str(error)
        raise UsageError(f"{place}: not readable as text", why, "store it again as UTF-8") from None


@contextmanager
def _parquet(uri: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{uri}: not readable as Parquet", str(error), "write it again") from None


def _parquet_columns(uri: str, content: bytes) -> list[str]:
    import pyarrow.parquet as pq

    with _parquet(uri):
        return list(pq.read_schema(io.BytesIO(content)).names)


def _parquet_table(uri: str, content: bytes, columns: Collection[str]) -> pa.Table:
    import pyarrow.parquet as pq

    wanted = [name for name in _parquet_columns(uri, content) if name in columns]
    with _parquet(uri):
        table = pq.read_table(io.BytesIO(content), columns=wanted)
        table.validate(full=True)  # Parquet itself may hold text that is not UTF-8
        return table


def _python_times(table: pa.Table) -> pa.Table:
    """Return the table with times in microseconds: Python has no nanoseconds."""
    import pyarrow as pa

    for at, column in enumerate(table.schema):
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            times = table.column(at).cast(pa.timestamp("us", column.type.tz), safe=False)
            table = table.set_column(at, column.name, times)
    return table


def field_of(row: Row, name: str, place: str) -> Any:
    """Return a field of a row; raise UsageError if it has none of that name."""
    if name not in row:
        raise bad(place, f"no {name!r}; there are {', '.join(map(str, row)) or 'no fields'}")
    return row[name]


def id_of(value: Any, place: str) -> str:
    """Return an id as text; raise UsageError if it is neither a string nor an integer."""
    # A float id is a column of integers with a gap in it: "12.0" would match no document.
    if type(value) in (str, int):
        return str(value)
    raise bad(place, f"id {value!r:.80} is neither a string nor an integer")


def words_of(row: Row, place: str) -> str:
    """Return the text of a query; raise UsageError if it is empty."""
    text = field_of(row, "text", place)
    if isinstance(text, str) and text.strip():
        return text
    raise bad(place, f"text {text!r:.80} is empty or not a string")


def bad(place: str, why: str) -> UsageError:
    """Return the error for a line or a row that cannot be used."""
    return UsageError(f"{place}: not usable", why, "correct it or remove it, then run again")
