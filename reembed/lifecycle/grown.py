"""Verify a version that grew out of a verified one by what is new in it, not by all of it.

The older version's table equals its source's documents, less the dead letters. So the newer one does if
the same rows left and came on both sides, as multisets of (id, text, carried values):

    rows that came + documents that left  ==  documents that came + rows that left

The index is compared likewise, by (row, id). Rows that came get every check of a full verification, and
their files are hashed. Trusted is what `store/moved.py` lists, the older release's verification, and that files which
both versions share still have the bytes that it hashed: their sizes are looked at. `reembed verify` trusts
none of that, and reads everything.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import numpy.typing as npt

from reembed import digests
from reembed.catalog.receipts import FileProof
from reembed.catalog.reports import VECTORS, Difference, DifferenceKind, VerifyReport
from reembed.digests import Digests
from reembed.engine.executor import HERE, Tasks
from reembed.index.held import Held
from reembed.lifecycle import reading
from reembed.lifecycle.reading import (
    HELD_LINK,
    LINK,
    IndexPiece,
    Reading,
    SourcePiece,
    SourceRead,
    TablePiece,
    TableRead,
    entries_of,
    links_of,
)
from reembed.lifecycle.scratch import Entries, Scratch, Spill, part_of_ids
from reembed.lifecycle.verify import SAMPLE, Subject, embed_sample, parts_of
from reembed.source.dataset import Source
from reembed.source.documents import documents_in as source_documents
from reembed.store.moved import Moved, moved
from reembed.table.documents import documents_in, rows_of
from reembed.table.read import (
    DELETIONS,
    TableVersion,
    damaged_files,
    files_of,
    fragments_of,
    missing_files,
)

MOST = 0.5
"""Share of all rows that moved, above which comparing everything reads less."""
_FILES_A_TASK = 256
_CONTENT, _LINKED = ("id", "text", "carried"), ("row", "id")


class CompareAll(Exception):
    """What is new does not show whether the whole is right; says why."""


@dataclass(frozen=True)
class Before:
    """A release that was compared with its source, row by row or by what was new in it."""

    source: Source
    table: TableVersion
    index: Held
    proofs: dict[str, FileProof]
    """What each of its data files must be, by name."""
    dead_letters: tuple[str | int, ...]
    report: VerifyReport
    """Of its verification, which passed."""


def verify_new(
    subject: Subject,
    before: Before,
    scratch: Scratch,
    sample: int = SAMPLE,
    seed: int | None = None,
    *,
    tasks: Tasks = HERE,
) -> VerifyReport:
    """Return what a full verification would, of a table version that grew out of that of `before`.

    `sample` rows that came are embedded again, if their documents came too.

    Raises:
        CompareAll: rows differ, or what may be trusted does not suffice. Nothing is said of the table.
        SpaceMismatch: the model found now is not the one of the line.
    """
    _require_shared(subject, before)
    _require_deletions(subject, before, tasks)
    growth = _Growth(subject, before, scratch, tasks)
    growth.require_little()
    came, left = growth.rows_that_came(), growth.rows_that_left()
    documents, gone = growth.documents_that_came(), growth.documents_that_left()
    rows, out = sum(r.rows for r in came), sum(r.rows for r in left)
    report = VerifyReport(
        table=subject.table.path,
        table_version=subject.table.version,
        source_version=subject.source.version,
        level=VECTORS,
        documents=before.report.documents + _documents(documents) - _documents(gone),
        rows=before.report.rows + rows - out,
        table_documents=before.report.table_documents + documents_in(rows) - documents_in(out),
        dead_letters=len(subject.dead_letters),
        differences={kind: Difference(0) for kind in get_args(DifferenceKind)},
        behind=None,
        sampled=0,
        seed=secrets.randbits(32) if seed is None else seed,
        new_rows=rows,
    )
    if report.rows != subject.table.rows:
        raise CompareAll(f"{subject.table.rows:,} rows are there, {report.rows:,} should be")
    source = subject.source
    if source.ref.filter is None and report.documents != source_documents(source.count_rows()):
        raise CompareAll("the source has another number of documents")
    places = growth.places(min(sample, rows), report.seed)
    names = subject.table.at(places, ["doc_id"])["doc_id"]
    chosen = digests.stack(digests.of_column(names))
    row_of = growth.balanced(came, left, (documents, gone), chosen)
    sampled, wrong = embed_sample(subject, places, chosen, row_of, tasks)
    differences = {**report.differences, "wrong_vector": wrong}
    return replace(report, differences=differences, sampled=sampled)


def _documents(pieces: Sequence[SourceRead]) -> int:
    return sum(piece.documents for piece in pieces)


def _require_shared(subject: Subject, before: Before) -> None:
    """Require that what both versions share is what the older release's verification saw."""
    table, ref = subject.table, before.source.ref
    if not before.source.is_as_planned(ref):
        raise CompareAll(f"version {ref.version} of the source is gone")
    now = replace(subject.source.ref, version=ref.version, fingerprint=ref.fingerprint)
    if now != ref or not before.report.passed or before.report.level < VECTORS:
        raise CompareAll("the release before was verified for something else")
    if set(subject.dead_letters) != set(before.dead_letters):
        raise CompareAll("other documents have no vector")
    names, proofs = files_of(table.dataset()), subject.proofs
    shared = names & before.proofs.keys()
    if names != proofs.keys() or any(proofs[n] != before.proofs[n] for n in shared):
        raise CompareAll("files are not the proven ones")
    if missing_files(table.storage, table.path, table.version):
        raise CompareAll("files are gone or of another size")


def _require_deletions(subject: Subject, before: Before, tasks: Tasks) -> None:
    """Require that deletion files that only one version has are as proven, before Lance reads them."""
    table, proofs = subject.table, {**before.proofs, **subject.proofs}
    only_one = sorted(before.proofs.keys() ^ subject.proofs.keys())
    names = [name for name in only_one if name.startswith(DELETIONS)]
    groups = (names[at : at + _FILES_A_TASK] for at in range(0, len(names), _FILES_A_TASK))
    work = ((table.storage, table.path, {n: proofs[n] for n in some}) for some in groups)
    if any(tasks.each(damaged_files, work)):
        raise CompareAll("deletion files are damaged")


class _Growth:
    """What came and what left between two verified states, and the tasks that read it."""

    def __init__(self, subject: Subject, before: Before, scratch: Scratch, tasks: Tasks) -> None:
        self.subject, self.before, self.tasks = subject, before, tasks
        self.table = _moved(before.table, subject.table, "table")
        whole = subject.source.ref.filter is not None  # rows read by id would not pass through it
        self.source = _moved(before.source, subject.source, "source", whole=whole)
        index, older = subject.index or before.index, before.index
        indexed = _rows_apart(index, older), _rows_apart(older, index)
        most = max(self.table.rows, self.source.rows, *indexed)
        carry = tuple(subject.source.ref.carry)
        self.reading = Reading(scratch, VECTORS, parts_of(most), subject.space.id, carry)

    def require_little(self) -> None:
        """Require that reading what moved is less work than reading everything."""
        all_rows = self.subject.table.rows + self.subject.source.count_rows()
        read = self.table.rows + self.source.rows
        if read > MOST * all_rows:
            raise CompareAll(f"{read:,} rows moved")

    def rows_that_came(self) -> list[TableRead]:
        """Hash and read the fragments that only the newer table has."""
        table, proofs = self.subject.table, self.subject.proofs
        pieces = reading.some_pieces(table, proofs, self.table.come, "came")
        return self._table(table, pieces)

    def rows_that_left(self) -> list[TableRead]:
        """Hash and read the fragments that only the older table has, and rows that others lost."""
        table, proofs = self.before.table, self.before.proofs
        pieces = reading.some_pieces(table, proofs, self.table.left, "left")
        for n, rows in enumerate(reading.chunks(self.table.thinned)):
            pieces.append(TablePiece(f"thinned-{n:06d}", (), {}, rows=rows))
        return self._table(table, pieces)

    def _table(self, table: TableVersion, pieces: list[TablePiece]) -> list[TableRead]:
        read = self.tasks.each(reading.read_table, ((self.reading, table, p) for p in pieces))
        if any(r.damaged or r.mismatched.count or r.corrupt.count for r in read):
            raise CompareAll("rows or files are damaged")
        return read

    def documents_that_came(self) -> list[SourceRead]:
        """Read the fragments that only the newer source has."""
        source = self.subject.source
        pieces = reading.source_pieces(source, self.source.come, "documents-came")
        return self._source(source, pieces)

    def documents_that_left(self) -> list[SourceRead]:
        """Read the fragments that only the older source has, and rows that others lost."""
        source = self.before.source
        pieces = reading.source_pieces(source, self.source.left, "documents-left")
        for n, rows in enumerate(reading.chunks(self.source.thinned)):
            pieces.append(SourcePiece(f"documents-thinned-{n:06d}", (), rows))
        return self._source(source, pieces)

    def _source(self, source: Source, pieces: list[SourcePiece]) -> list[SourceRead]:
        return self.tasks.each(reading.read_source, ((self.reading, source, p) for p in pieces))

    def _index(self, held: Held, other: Held, name: str) -> tuple[Spill, ...]:
        """Read the segments that the other index lacks; of shared ones, what only the other has buried."""
        theirs = {other.key(n): n for n in range(other.segments)}
        shared = {n: theirs[key] for n in range(held.segments) if (key := held.key(n)) in theirs}
        buried = zip(shared, held.dead([*shared]), other.dead([*shared.values()]), strict=True)
        new = [n for n in range(held.segments) if n not in shared]
        pieces = [IndexPiece(f"{name}-{segment:06d}", segment) for segment in new]
        for segment, ours, others in buried:
            only = np.setdiff1d(others, ours, assume_unique=True)
            if len(only):
                pieces.append(IndexPiece(f"{name}-{segment:06d}", segment, tuple(only.tolist())))
        table = self.subject.table if held is self.subject.index else None
        work = ((self.reading, table, held, piece) for piece in pieces)
        read = self.tasks.each(reading.read_index, work)
        if any(r.misplaced.count for r in read):
            raise CompareAll("a search by their own vectors misses rows of the index")
        return links_of(read)

    def places(self, count: int, seed: int | None) -> npt.NDArray[np.int64]:
        """Draw rows that came; return their places in a scan of the newer table."""
        rows = {i: f.rows for i, f in fragments_of(self.subject.table.dataset()).items()}
        starts = dict(zip(rows, np.cumsum([0, *rows.values()]).tolist(), strict=False))
        first = np.array([starts[i] for i in self.table.come], np.int64)
        ends = np.cumsum([rows[i] for i in self.table.come])
        if not count:
            return np.empty(0, np.int64)
        drawn = np.random.default_rng(seed).choice(int(ends[-1]), count, replace=False)
        at = np.searchsorted(ends, drawn, side="right")
        return np.asarray(first[at] + drawn - np.append(0, ends)[at], np.int64)

    def balanced(
        self,
        came: list[TableRead],
        left: list[TableRead],
        documents: tuple[list[SourceRead], list[SourceRead]],
        chosen: Digests,
    ) -> dict[bytes, int]:
        """Require that rows and documents moved alike; return the source's rows of the `chosen` ids.

        Raises CompareAll if they did not.
        """
        there, gone = documents
        sides = _Sides(entries_of(came), entries_of(left), entries_of(there), entries_of(gone))
        index, older = self.subject.index, self.before.index
        if index is not None:
            sides = replace(
                sides,
                links_came=links_of(came),
                links_left=links_of(left),
                held_came=self._index(index, older, "index-came"),
                held_left=self._index(older, index, "index-left"),
            )
        parts = sides.parts(self.reading.parts, chosen)
        found = self.tasks.each(_balance, ((self.reading, part) for part in parts))
        if any(rows is None for rows in found):
            raise CompareAll("rows of the table and documents of the source moved differently")
        return {digest: row for rows in found for digest, row in rows or ()}


def _moved(
    older: Source | TableVersion, newer: Source | TableVersion, what: str, *, whole: bool = False
) -> Moved:
    found = moved(older.dataset(), newer.dataset(), whole=whole)
    if found is None:
        raise CompareAll(f"the columns of the {what} changed")
    return found


def _rows_apart(index: Held, other: Held) -> int:
    """Return the rows of the segments that the other index lacks."""
    theirs = {other.key(n) for n in range(other.segments)}
    return sum(index.rows_in(n) for n in range(index.segments) if index.key(n) not in theirs)


@dataclass(frozen=True)
class _Sides:
    """Where the entries of what came and left are, and in one partition the ids that are asked for."""

    came: tuple[Spill, ...]
    left: tuple[Spill, ...]
    documents_came: tuple[Spill, ...]
    documents_left: tuple[Spill, ...]
    links_came: tuple[Spill, ...] = ()
    links_left: tuple[Spill, ...] = ()
    held_came: tuple[Spill, ...] = ()
    held_left: tuple[Spill, ...] = ()
    asked: tuple[bytes, ...] = ()

    def parts(self, count: int, asked: Digests) -> Iterator[_Sides]:
        part = part_of_ids(asked, count)
        for number in range(count):
            one = {
                name: tuple(spill.part(number) for spill in spills)
                for name, spills in vars(self).items()
                if name != "asked"
            }
            yield _Sides(**one, asked=tuple(asked[part == number].tolist()))


def _balance(reading: Reading, part: _Sides) -> tuple[tuple[bytes, int], ...] | None:
    """Return digest and row of the documents asked for; None if rows and documents moved differently."""
    read = reading.scratch.entries
    came, left = read(part.came, reading.entry), read(part.left, reading.entry)
    documents = read(part.documents_came, reading.entry)
    gone = read(part.documents_left, reading.entry)
    each = rows_of(1)
    if not _same((came, np.repeat(gone, each)), (np.repeat(documents, each), left), _CONTENT):
        return None
    held_came, held_left = (read(s, HELD_LINK) for s in (part.held_came, part.held_left))
    links_came, links_left = (read(s, LINK) for s in (part.links_came, part.links_left))
    if not _same((held_came, links_left), (held_left, links_came), _LINKED):
        return None
    at = np.isin(documents["id"], digests.stack(b"".join(part.asked)))
    return tuple(zip(documents["id"][at].tolist(), documents["row"][at].tolist(), strict=True))


def _same(more: Sequence[Entries], less: Sequence[Entries], columns: Sequence[str]) -> bool:
    """Return whether both have the same values in these columns, each as often."""

    def packed(sides: Sequence[Entries]) -> npt.NDArray[np.void]:
        kind = np.dtype([(name, sides[0].dtype[name]) for name in columns])
        made = np.empty(sum(map(len, sides)), kind)
        for name in columns:
            made[name] = np.concatenate([side[name] for side in sides])
        return np.sort(made.view(f"V{kind.itemsize}"))

    one, other = packed(more), packed(less)
    return len(one) == len(other) and bool((one == other).all())
