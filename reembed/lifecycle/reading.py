"""Read a table, a source and an index in pieces, each by one task and once.

A task hashes the files of its piece before Lance reads them, checks what a row shows by itself, and
leaves an entry for each row or document: digests of its id, its text and its carried values, and its
row id. What must be compared across pieces is compared by partition (differences.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed import digests
from reembed.catalog.receipts import FileProof
from reembed.catalog.reports import ROWS, Difference
from reembed.digests import Digests
from reembed.errors import IntegrityError
from reembed.index.held import Held, Look
from reembed.index.placed import misplaced
from reembed.index.search import SearchIndex
from reembed.index.types import Int64
from reembed.lifecycle.scratch import Entries, Scratch, Spill, Spiller, part_of_ids
from reembed.source.dataset import TEXT, Source
from reembed.source.documents import documents_in
from reembed.table.read import (
    TableVersion,
    as_vectors,
    damaged_files,
    files_of_fragment,
    fragments_of,
)

EXAMPLES = 5
"""Ids that a report shows for each kind of difference."""
PIECE_ROWS = 262_144
"""Rows that one task reads, unless a fragment has more."""
_TAKEN_ROWS = 8_192
"""Of these, rows that are read at once by their ids."""
MOST_PIECES = 1_024

ID_ENTRY = np.dtype([("id", "V16"), ("row", "<i8")])
ROW_ENTRY = np.dtype([*ID_ENTRY.descr, ("text", "V16"), ("carried", "V16")])
"""A row or a document; below level 2 ID_ENTRY."""
LINK = np.dtype([("row", "<i8"), ("id", "V16")])
"""The id of a table's row."""
HELD_LINK = np.dtype([*LINK.descr, ("position", "<i8")])
"""The id that an index has for a row."""


@dataclass(frozen=True)
class TablePiece:
    """Fragments of a table that one task reads."""

    name: str
    fragments: tuple[int, ...]
    proofs: dict[str, FileProof]
    """What their files must be, by name."""
    only_files: bool = False
    """Whether its files are hashed and no row is read."""
    rows: tuple[int, ...] | None = None
    """Row ids to read instead of whole fragments."""


@dataclass(frozen=True)
class SourcePiece:
    """Fragments of a source that one task reads, or rows by id."""

    name: str
    fragments: tuple[int, ...]
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class IndexPiece:
    """A segment of an index that one task reads, or some places of it."""

    name: str
    segment: int
    places: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TableRead:
    """What a piece of a table showed."""

    rows: int
    damaged: tuple[str, ...]
    """Files with other bytes than proven; the rows were not read then."""
    mismatched: Difference
    """Rows of another space."""
    corrupt: Difference
    """Rows whose vector is not finite or is zero."""
    entries: tuple[Spill, ...]
    links: tuple[Spill, ...]


@dataclass(frozen=True)
class SourceRead:
    """What a piece of a source showed."""

    documents: int
    entries: tuple[Spill, ...]


@dataclass(frozen=True)
class IndexRead:
    """What a segment of an index showed."""

    misplaced: Difference
    """Documents of a sample that a search by their own vectors does not find."""
    links: tuple[Spill, ...]


@dataclass(frozen=True)
class Reading:
    """What is read of each row, and into how many partitions. Picklable."""

    scratch: Scratch
    level: int
    parts: int
    space: str
    carry: tuple[str, ...]
    looks_at_vectors: bool = True
    """Whether the space and the vector of each row are looked at, and its id is linked to its row id."""

    @property
    def entry(self) -> np.dtype[Any]:
        """What a row or a document leaves."""
        return ROW_ENTRY if self.level >= ROWS else ID_ENTRY

    def spiller(self, name: str) -> Spiller:
        """Return a writer of entries by id."""
        return Spiller(self.scratch, name, self.parts, lambda e, n: part_of_ids(e["id"], n))

    def linker(self, name: str) -> Spiller:
        """Return a writer of links by row."""
        return Spiller(self.scratch, name, self.parts, lambda e, n: e["row"] % n)


def groups(rows: Mapping[int, int]) -> list[tuple[int, ...]]:
    """Return fragments, given their numbers of rows, in groups that one task reads."""
    most = max(PIECE_ROWS, sum(rows.values()) // MOST_PIECES)
    found: list[list[int]] = [[]]
    held = 0
    for fragment, count in rows.items():
        if held and held + count > most:
            found.append([])
            held = 0
        found[-1].append(fragment)
        held += count
    return [tuple(group) for group in found if group]


def table_pieces(
    table: TableVersion, proofs: Mapping[str, FileProof], *, only_files: bool
) -> list[TablePiece]:
    """Cut a table; proven files that no fragment has are hashed as a piece without rows."""
    fragments = fragments_of(table.dataset())
    pieces = some_pieces(table, proofs, list(fragments), "table", only_files=only_files)
    left = proofs.keys() - {name for piece in pieces for name in piece.proofs}
    if left:
        more = {name: proofs[name] for name in sorted(left)}
        pieces.append(TablePiece(f"table-{len(pieces):06d}", (), more, only_files=True))
    return pieces


def some_pieces(
    table: TableVersion,
    proofs: Mapping[str, FileProof],
    chosen: Sequence[int],
    name: str,
    *,
    only_files: bool = False,
) -> list[TablePiece]:
    """Cut some fragments of a table; each file that has a proof is held to it."""
    fragments = {f.fragment_id: f.metadata for f in table.dataset().get_fragments()}
    pieces: list[TablePiece] = []
    for group in groups({i: fragments[i].num_rows for i in chosen}):
        names = [name for i in group for name in files_of_fragment(fragments[i])]
        proven = {n: proofs[n] for n in names if n in proofs}
        pieces.append(TablePiece(f"{name}-{len(pieces):06d}", group, proven, only_files))
    return pieces


def source_pieces(source: Source, chosen: Sequence[int] | None, name: str) -> list[SourcePiece]:
    """Cut some fragments of a source, or all."""
    rows = source.fragments()
    some = rows if chosen is None else {i: rows[i] for i in chosen}
    return [SourcePiece(f"{name}-{n:06d}", group) for n, group in enumerate(groups(some))]


def chunks(row_ids: npt.NDArray[np.int64]) -> Iterator[tuple[int, ...]]:
    """Yield row ids in groups that one task reads."""
    for start in range(0, len(row_ids), PIECE_ROWS):
        yield tuple(row_ids[start : start + PIECE_ROWS].tolist())


def read_table(reading: Reading, table: TableVersion, piece: TablePiece) -> TableRead:
    """Hash the files of a piece; if they are sound, read its rows."""

    def read() -> TableRead:
        damaged = damaged_files(table.storage, table.path, piece.proofs)
        if damaged or piece.only_files:
            return TableRead(0, tuple(damaged), Difference(0), Difference(0), (), ())
        return _read_rows(reading, table, piece)

    if piece.only_files:
        return read()
    return reading.scratch.once(TableRead, piece.name, read, lambda found: not found.damaged)


def _read_rows(reading: Reading, table: TableVersion, piece: TablePiece) -> TableRead:
    columns = ["doc_id"]
    if reading.level >= ROWS:
        columns += ["text_hash", *reading.carry]
        columns += ["space", "vector"] if reading.looks_at_vectors else []
    entries, links = reading.spiller(piece.name), reading.linker(f"{piece.name}-links")
    mismatched, corrupt, rows = _Few(), _Few(), 0
    for batch in _batches(table, piece, columns):
        names, row_ids = batch.column("doc_id"), _row_ids(batch.column("_rowid"))
        ids = digests.stack(digests.of_column(names))
        rows += batch.num_rows
        if reading.level < ROWS:
            entries.add(_entries(reading.entry, id=ids, row=row_ids))
            continue
        texts = digests.stored(batch.column("text_hash").fill_null(bytes(digests.BYTES)))
        carried = _carried([batch.column(c) for c in reading.carry], batch.num_rows)
        entries.add(_entries(reading.entry, id=ids, row=row_ids, text=texts, carried=carried))
        if not reading.looks_at_vectors:
            continue
        links.add(_entries(LINK, id=ids, row=row_ids))
        same = pc.equal(batch.column("space"), reading.space).fill_null(False)
        mismatched.add(names.filter(pc.invert(same)))
        norms = np.linalg.norm(as_vectors(batch.column("vector")), axis=1)
        corrupt.add(names.filter(pa.array(~(np.isfinite(norms) & (norms > 0)))))
    spilled = entries.close(), links.close()
    return TableRead(rows, (), mismatched.found(), corrupt.found(), *spilled)


def _batches(
    table: TableVersion, piece: TablePiece, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    if piece.rows is None:
        return table.scan(columns, piece.fragments)
    return (
        batch
        for some in _few(piece.rows)
        for batch in table.take(some, columns).append_column("_rowid", pa.array(some)).to_batches()
    )


def _documents(source: Source, piece: SourcePiece) -> Iterator[pa.Table]:
    if piece.rows is None:
        return source.rows_in(piece.fragments)
    return (
        source.take(some.tolist()).append_column("_rowid", pa.array(some))
        for some in _few(piece.rows)
    )


def _few(rows: Sequence[int]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield row ids in groups that are read at once: their vectors and texts are in memory."""
    for start in range(0, len(rows), _TAKEN_ROWS):
        yield np.array(rows[start : start + _TAKEN_ROWS], np.int64)


def read_source(reading: Reading, source: Source, piece: SourcePiece) -> SourceRead:
    """Read the documents of a piece of a source."""

    def read() -> SourceRead:
        entries, documents = reading.spiller(piece.name), 0
        for part in _documents(source, piece):
            ids, row_ids = digests.stack(digests.of_column(part["doc_id"])), part["_rowid"]
            made = {"id": ids, "row": _row_ids(row_ids)}
            if reading.level >= ROWS:
                made["text"] = digests.stack(digests.of_column(part[TEXT]))
                made["carried"] = _carried([part[c] for c in reading.carry], part.num_rows)
            entries.add(_entries(reading.entry, **made))
            documents += documents_in(part.num_rows)
        return SourceRead(documents, entries.close())

    return reading.scratch.once(SourceRead, piece.name, read)


def read_index(
    reading: Reading, table: TableVersion | None, held: Held, piece: IndexPiece
) -> IndexRead:
    """Read the row and the document of every entry of a piece of an index.

    In a whole segment of it, some rows are searched by the vectors that `table` has; None: they are not.

    Raises:
        IntegrityError: its files are not those of its manifest, or hold other numbers of rows.
    """

    def read() -> IndexRead:
        links, strays = reading.linker(piece.name), np.empty(0, np.int64)

        def look(index: SearchIndex, places: Int64, row_ids: Int64) -> None:
            nonlocal strays
            if table is None:
                return
            with suppress(IntegrityError):  # rows that the table does not have are unindexed
                strays = misplaced(index, places, row_ids, table.vectors_of, held.recall)

        for positions, row_ids, doc_ids in _held(held, piece, look):
            ids = digests.stack(digests.of_column(doc_ids))
            links.add(_entries(HELD_LINK, row=row_ids, id=ids, position=positions))
        examples = held.at(piece.segment, strays[:EXAMPLES])[1].to_pylist() if len(strays) else []
        return IndexRead(Difference(len(strays), tuple(examples)), links.close())

    return reading.scratch.once(IndexRead, piece.name, read)


def _held(held: Held, piece: IndexPiece, look: Look) -> Iterator[tuple[Any, Any, pa.Array]]:
    if piece.places is None:
        return held.batches(piece.segment, look)
    places = np.array(piece.places, np.int64)
    return iter([(places, *held.at(piece.segment, places))])


class _Few:
    """Counts ids, and keeps the first few."""

    def __init__(self) -> None:
        self._count = 0
        self._first: list[Any] = []

    def add(self, ids: pa.Array) -> None:
        self._count += len(ids)
        self._first += ids[: EXAMPLES - len(self._first)].to_pylist()

    def found(self) -> Difference:
        return Difference(self._count, tuple(self._first))


def entries_of(pieces: Iterable[TableRead | SourceRead]) -> tuple[Spill, ...]:
    """Return where the entries of pieces are."""
    return tuple(spill for piece in pieces for spill in piece.entries)


def links_of(pieces: Iterable[TableRead | IndexRead]) -> tuple[Spill, ...]:
    """Return where the links of pieces are."""
    return tuple(spill for piece in pieces for spill in piece.links)


def together(found: Iterator[Difference]) -> Difference:
    """Return the differences of pieces as one."""
    every = list(found)
    examples = [e for d in every for e in d.examples]
    return Difference(sum(d.count for d in every), tuple(examples[:EXAMPLES]))


def _entries(kind: np.dtype[Any], **columns: Any) -> Entries:
    made = np.empty(len(columns["row"]), kind)
    for name, values in columns.items():
        made[name] = values
    return made


def _carried(columns: Sequence[pa.Array | pa.ChunkedArray], rows: int) -> Digests:
    return digests.stack(digests.of_rows(columns, rows))


def _row_ids(column: pa.Array | pa.ChunkedArray) -> Any:
    return column.to_numpy().astype(np.int64)
