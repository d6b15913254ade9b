"""Whether every document of a source has an id of its own, and a text: of many, a part of them at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reembed import digests
from reembed.catalog.reports import IDS
from reembed.lifecycle import reading
from reembed.lifecycle.differences import Part, Sides, cut
from reembed.lifecycle.reading import EXAMPLES, ID_ENTRY, Reading, SourcePiece
from reembed.lifecycle.scratch import Spill
from reembed.lifecycle.verify import parts_of
from reembed.source.dataset import Source
from reembed.source.documents import documents_in
from reembed.strategies.differing import Comparing

HELD_IDS = 1_000_000
"""Ids that are held at once, 44 bytes each; more are looked at by partition."""


@dataclass(frozen=True)
class _IdsRead:
    """What a piece of a source showed."""

    documents: int
    nulls: int
    null_texts: int
    entries: tuple[Spill, ...]


@dataclass(frozen=True)
class Checked:
    """The documents of a source, which have an id each."""

    documents: int
    null_texts: int
    """Documents whose text is null; 0 if they were not counted."""


def check_ids(source: Source, how: Comparing, *, texts: bool = False) -> Checked:
    """Count documents, as `Source.check_documents`, and null texts if `texts`; of many, no process reads all.

    Raises:
        SourceError: as `Source.check_documents`. The caller removes `how.scratch`.
    """
    rows = source.count_rows()
    if rows <= HELD_IDS:
        return Checked(source.check_documents(), source.null_texts() if texts else 0)
    parts = parts_of(rows)
    read = Reading(how.scratch, IDS, parts, space="", carry=())
    with how.tasks() as tasks:
        pieces = (
            (read, source, piece, texts) for piece in reading.source_pieces(source, None, "ids")
        )
        found = tasks.each(_read, pieces)
        sides = Sides((), tuple(spill for piece in found for spill in piece.entries))
        cuts = ((read, part) for part in cut(sides, parts, (), np.empty(0, "V16")))
        repeated = [one for found_in in tasks.each(_repeated, cuts) for one in found_in]
    documents, nulls = sum(p.documents for p in found), sum(p.nulls for p in found)
    source.require_ids(documents, nulls, repeated[:EXAMPLES])
    return Checked(documents, sum(p.null_texts for p in found))


def _read(read: Reading, source: Source, piece: SourcePiece, texts: bool) -> _IdsRead:
    """Read the ids of a piece of a source, and its texts if they are asked for."""

    def ids() -> _IdsRead:
        entries, documents, nulls = read.spiller(piece.name), 0, 0
        for names, row_ids in source.ids_in(piece.fragments):
            made = np.empty(len(names), ID_ENTRY)
            made["id"], made["row"] = digests.stack(digests.of_column(names)), row_ids
            entries.add(made[names.is_valid().to_numpy(zero_copy_only=False)])
            documents, nulls = documents + documents_in(len(names)), nulls + names.null_count
        without = source.null_texts(piece.fragments) if texts else 0
        return _IdsRead(documents, nulls, without, entries.close())

    return read.scratch.once(_IdsRead, piece.name, ids)


def _repeated(read: Reading, part: Part) -> list[tuple[int, int]]:
    """Return a row of each of the first few ids of a partition that several rows have, and how many have it."""
    entries = read.scratch.entries(part.sides.source, ID_ENTRY)
    _, first, counts = np.unique(
        np.ascontiguousarray(entries["id"]), return_index=True, return_counts=True
    )
    found = np.flatnonzero(counts > 1)[:EXAMPLES]
    return list(zip(entries["row"][first[found]].tolist(), counts[found].tolist(), strict=True))
