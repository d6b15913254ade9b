"""What differs between the rows of a table, the documents of a source and the rows of an index.

Ids are compared partition by partition: each task takes the entries of some ids (reading.py) from all
sides. Examples are the first by digest, whatever the number of partitions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from reembed import digests
from reembed.catalog.reports import Difference, DifferenceKind, Differences
from reembed.digests import Digests
from reembed.lifecycle.reading import EXAMPLES, HELD_LINK, LINK, Reading
from reembed.lifecycle.scratch import Entries, Spill, part_of_ids
from reembed.source.dataset import Source
from reembed.table.documents import by_document
from reembed.table.read import TableVersion

DeadLetters = Sequence[str | int]
"""Ids of documents without a vector."""
NO_ROW = -1
_LAST = np.iinfo(np.int64).max
IdKinds = dict[DifferenceKind, "Few"]
_OF_THE_SOURCE: tuple[DifferenceKind, ...] = ("missing",)
"""Kinds whose examples only the source has."""


@dataclass(frozen=True)
class Few:
    """How many there are, and the first few: what they are sorted by, and a row that shows it."""

    count: int
    first: tuple[tuple[Any, int], ...] = ()

    @classmethod
    def of(cls, keys: Any, rows: Any) -> Few:
        """Take keys [N], sorted, and rows [N]."""
        shown = zip(keys[:EXAMPLES].tolist(), rows[:EXAMPLES].tolist(), strict=True)
        return cls(len(keys), tuple(shown))

    @classmethod
    def sum(cls, found: Iterable[Few]) -> Few:
        """Return what partitions have together."""
        every = list(found)
        first = sorted(f for few in every for f in few.first)[:EXAMPLES]
        return cls(sum(few.count for few in every), tuple(first))


@dataclass(frozen=True)
class Sides:
    """Where the entries of each side are."""

    table: tuple[Spill, ...]
    source: tuple[Spill, ...]
    newest: tuple[Spill, ...] | None = None
    """Of a newer version of the source; None if the table is compared with none."""
    links: tuple[Spill, ...] = ()
    held: tuple[Spill, ...] | None = None
    """Of the index; None if the table is compared with none."""

    def part(self, number: int) -> Sides:
        sides = {f.name: getattr(self, f.name) for f in fields(self)}
        return Sides(
            **{k: tuple(x.part(number) for x in s) for k, s in sides.items() if s is not None}
        )


@dataclass(frozen=True)
class Part:
    """A partition to compare."""

    sides: Sides
    dead: tuple[bytes, ...]
    """Digests of ids without a vector."""
    asked: tuple[bytes, ...]
    """Digests of ids whose documents are to be named."""


@dataclass(frozen=True)
class Compared:
    """What the comparison of a partition, or of all, found."""

    table_documents: int
    ids: IdKinds
    behind: IdKinds | None
    unindexed: Few
    misnamed: Few
    asked: tuple[tuple[bytes, int], ...]
    """Digest and row of the source's documents that were asked for."""

    @classmethod
    def sum(cls, parts: Sequence[Compared]) -> Compared:
        """Return what all partitions have together."""
        behind = None
        if parts[0].behind is not None:
            behind = _sum([p.behind for p in parts if p.behind is not None])
        return cls(
            sum(p.table_documents for p in parts),
            _sum([p.ids for p in parts]),
            behind,
            Few.sum(p.unindexed for p in parts),
            Few.sum(p.misnamed for p in parts),
            tuple(a for p in parts for a in p.asked),
        )


def _sum(found: Sequence[IdKinds]) -> IdKinds:
    return {kind: Few.sum(f[kind] for f in found) for kind in found[0]}


def cut(sides: Sides, parts: int, dead: DeadLetters, asked: Digests) -> Iterator[Part]:
    """Yield the partitions, each with those of the given ids that are in it."""
    groups: list[tuple[list[bytes], list[bytes]]] = [([], []) for _ in range(parts)]
    for side, ids in enumerate((digests.of_ids(dead), asked)):
        for part, digest in zip(part_of_ids(ids, parts).tolist(), ids.tolist(), strict=True):
            groups[part][side].append(digest)
    for number, (without, named) in enumerate(groups):
        yield Part(sides.part(number), tuple(without), tuple(named))


def compare(reading: Reading, part: Part) -> Compared:
    """Compare the entries of one partition."""
    read, sides = reading.scratch.entries, part.sides

    def of(spills: tuple[Spill, ...]) -> Entries:
        return read(spills, reading.entry)

    rows, documents, dead = of(sides.table), of(sides.source), digests.stack(b"".join(part.dead))
    ids, table_documents = _by_kind(dead, rows, documents)
    behind = None
    if sides.newest is not None:
        behind, _ = _by_kind(dead, rows, of(sides.newest))
    unindexed, misnamed = Few(0), Few(0)
    if sides.held is not None:
        unindexed, misnamed = _index(read(sides.links, LINK), read(sides.held, HELD_LINK))
    at = np.isin(documents["id"], digests.stack(b"".join(part.asked)))
    asked = zip(documents["id"][at].tolist(), documents["row"][at].tolist(), strict=True)
    return Compared(table_documents, ids, behind, unindexed, misnamed, tuple(asked))


def _by_kind(dead: Digests, rows: Entries, documents: Entries) -> tuple[IdKinds, int]:
    """Match rows and documents by id, and compare texts and carried values if they were read.

    Also returns the number of documents that the rows are of.
    """
    there, at_document = np.unique(documents["id"], return_index=True)
    held = by_document(np.ascontiguousarray(rows["id"]))
    common, document, row = np.intersect1d(there, held.ids, assume_unique=True, return_indices=True)
    lacking, more = np.delete(there, document), np.delete(held.ids, row)
    found: dict[DifferenceKind, Digests] = {
        "missing": np.setdiff1d(lacking, dead),
        "extra": functools.reduce(
            np.union1d, (more, np.setdiff1d(dead, there), np.intersect1d(common, dead))
        ),
        "duplicate": held.repeated,
    }
    if "text" in (rows.dtype.names or ()):
        document, row = at_document[document], held.rows[row]
        found["stale"] = common[documents["text"][document] != rows["text"][row]]
        carried = documents["carried"][document] != rows["carried"][row]
        found["carried"] = np.setdiff1d(common[carried], found["stale"])
    in_table, in_source = (held.ids, rows["row"][held.rows]), (there, documents["row"][at_document])
    kinds = {
        kind: Few.of(ids, _rows(ids, *(in_source if kind in _OF_THE_SOURCE else in_table)))
        for kind, ids in found.items()
    }
    return kinds, len(held.ids)


def _rows(ids: Digests, known: Digests, rows: Any) -> Any:
    """Return the row of the first few ids among known ones; NO_ROW if an id is not there."""
    return np.append(rows, NO_ROW)[digests.find(known, ids[:EXAMPLES])]


def _index(links: Entries, held: Entries) -> tuple[Few, Few]:
    """Compare rows of the table with what the index answers with, by row id."""
    known, row = np.unique(links["row"], return_index=True)
    found, at = np.unique(held["row"], return_index=True)
    gap = np.setxor1d(known, found, assume_unique=True)
    repeated = len(held) - len(found)
    keys = np.append(gap, np.full(repeated, _LAST))
    _, common, same = np.intersect1d(known, found, assume_unique=True, return_indices=True)
    row, at = row[common], at[same]
    wrong = np.sort(held["position"][at[links["id"][row] != held["id"][at]]])
    return Few.of(keys, np.append(gap, np.full(repeated, NO_ROW))), Few.of(wrong, wrong)


def named(found: IdKinds, table: TableVersion, source: Source, dead: DeadLetters) -> Differences:
    """Return differences with the ids of their examples, read by row."""
    # A dead letter that was deleted from the source is in neither of the two.
    letters = {digests.of_id(d): d for d in dead}
    wanted = {kind: [row for _, row in few.first if row != NO_ROW] for kind, few in found.items()}
    names = {k: _ids(rows, k, table, source) for k, rows in wanted.items() if rows}
    return {
        kind: Difference(
            few.count,
            tuple(letters[key] if key in letters else names[kind][row] for key, row in few.first),
        )
        for kind, few in found.items()
    }


def _ids(
    rows: list[int], kind: DifferenceKind, table: TableVersion, source: Source
) -> Mapping[int, str | int]:
    def read() -> pa.Table:
        if kind in _OF_THE_SOURCE:
            return source.take(rows)
        return table.take(np.array(rows, np.int64), ["doc_id"])

    return dict(zip(rows, read()["doc_id"].to_pylist(), strict=True))
