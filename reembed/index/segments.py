"""Several FAISS indexes and their ids, searched as one.

A position counts through the segments in their order. Tombstones are positions that no search
returns: rows that a later segment replaced, or whose document is gone.

Shapes: N rows in all segments, Q queries, K results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed.catalog.index_manifest import FIX, Segment
from reembed.errors import IntegrityError
from reembed.index.queries import require_k
from reembed.index.search import SearchIndex
from reembed.index.selection import Mask, Selection
from reembed.index.sharded import ShardedIndex
from reembed.index.types import Answer, Float32, Int64, Setting
from reembed.index.wider import best, joined

_NONE = np.empty(0, np.int64)
_FEW = 20
"""Ids up to which reading them one by one is faster than Arrow's `take`."""


@dataclass(frozen=True)
class Opened:
    """A segment with its files as they are open."""

    segment: Segment
    index: SearchIndex
    ids: pa.RecordBatch


class SegmentedIndex:
    """Segments of one dimension with their document ids, ready to search."""

    def __init__(
        self,
        segments: Sequence[SearchIndex | ShardedIndex],
        ids: Sequence[pa.RecordBatch],
        tombstones: Int64 = _NONE,
        opened: Sequence[Opened] = (),
    ) -> None:
        """Take segments, row_id and doc_id of all their positions, and tombstones int64 [T], sorted.

        Ids may come in more pieces than the vectors: shards of one index answer as one. `opened` is what can be
        shared with another index.

        Raises:
            IntegrityError: they do not fit each other.
        """
        rows, named = [s.rows for s in segments], [b.num_rows for b in ids]
        shapes = {s.dim for s in segments}, {str(b.schema.field("doc_id").type) for b in ids}
        if any(len(shape) != 1 for shape in shapes) or sum(rows) != sum(named):
            raise IntegrityError(
                "segments of an index do not fit each other",
                f"{rows} rows of {shapes[0]} dimensions with {named} document ids of {shapes[1]}",
                FIX,
            )
        self.segments = tuple(segments)
        self.opened = tuple(opened)
        self._starts = np.cumsum([0, *rows])
        self._id_starts = np.cumsum([0, *named])
        self._row_ids = [b.column("row_id").to_numpy() for b in ids]
        self._doc_ids = [_DocIds(b.column("doc_id")) for b in ids]
        if len(tombstones) and tombstones[-1] >= self._starts[-1]:
            last, most = tombstones[-1], self._starts[-1]
            raise IntegrityError(f"tombstone {last} in an index of {most:,} positions", None, FIX)
        cuts = np.searchsorted(tombstones, self._starts)
        self._dead = [
            tombstones[cuts[n] : cuts[n + 1]] - start for n, start in enumerate(self._starts[:-1])
        ]
        self._is_plain = len(segments) == 1 and not len(tombstones)
        self.rows = sum(rows) - len(tombstones)
        """Rows that a search can find."""
        self.dim = segments[0].dim
        self.scores_are_exact = all(s.scores_are_exact for s in segments)

    def nearest(self, queries: npt.ArrayLike, k: int) -> tuple[Int64, Float32]:
        """Return positions [Q, K] and scores [Q, K], and raise errors, as `SearchIndex.nearest`."""
        if self._is_plain:
            return self.segments[0].nearest(queries, k)
        require_k(k)
        parts = zip(self._starts[:-1].tolist(), self.segments, self._dead, strict=True)
        return joined(((start, *_living(s, dead, queries, k)) for start, s, dead in parts), k)

    def answer(self, queries: npt.ArrayLike, k: int) -> Answer:
        """Return what `nearest` finds, with the document ids."""
        return Answer(*self.nearest(queries, k), self.doc_ids, self.row_ids)

    def among(self, row_ids: Int64, condition: str) -> SelectedRows | None:
        """Return a search of only the rows with these ids [R], one at least; None if FAISS cannot do so.

        Not each kind of index takes a selection: Flat, scalar quantizers, HNSW and all kinds with lists do.
        `condition` is for kinds that choose rows themselves.
        """
        if not all(s.selects for s in self.segments):
            return None
        pieces = [np.isin(held, row_ids) for held in self._row_ids]
        mask = np.concatenate(pieces)
        for start, dead in zip(self._starts[:-1], self._dead, strict=True):
            mask[start + dead] = False
        return SelectedRows(self, mask, self._starts.tolist())

    @property
    def setting(self) -> Setting | None:
        """The setting of the first segment, as `SearchIndex.setting`."""
        return self.segments[0].setting

    @contextmanager
    def set_to(self, value: int) -> Iterator[SegmentedIndex]:
        """Search at another value of the setting meanwhile; threads that share the index do so, too."""
        before = [s.setting for s in self.segments]
        try:
            for segment, own in zip(self.segments, before, strict=True):
                if own is not None:
                    segment.operate({own.name: min(value, own.most)})
            yield self
        finally:
            for segment, own in zip(self.segments, before, strict=True):
                if own is not None:
                    segment.operate({own.name: own.value})

    def search(self, queries: npt.ArrayLike, k: int) -> tuple[Int64, Float32]:
        """Return row ids [Q, K] and scores [Q, K], as `nearest`."""
        positions, scores = self.nearest(queries, k)
        there = positions >= 0
        rows = np.full(positions.shape, -1, np.int64)
        rows[there] = self.row_ids(positions[there])
        return rows, scores

    def row_ids(self, positions: Int64) -> Int64:
        """Return the row ids [R] of positions [R]."""
        rows = np.empty(len(positions), np.int64)
        for piece, at, within in self._by_piece(positions):
            rows[at] = self._row_ids[piece][within]
        return rows

    def doc_ids(self, positions: Int64) -> list[str | int]:
        """Return the document ids [R] of positions [R]."""
        if len(self._doc_ids) == 1:
            return self._doc_ids[0].take(positions)
        names = np.empty(len(positions), object)
        for piece, at, within in self._by_piece(positions):
            names[at] = self._doc_ids[piece].take(within)
        return list(names)

    def ids(self) -> pa.Table:
        """Return row_id and doc_id of every row that a search can find, in the order of positions."""
        held = pa.Table.from_batches(
            pa.record_batch({"row_id": row_ids, "doc_id": doc_ids.ids})
            for row_ids, doc_ids in zip(self._row_ids, self._doc_ids, strict=True)
        )
        if self.rows == held.num_rows:
            return held
        alive = np.ones(held.num_rows, bool)
        for start, dead in zip(self._starts[:-1], self._dead, strict=True):
            alive[start + dead] = False
        return held.filter(pa.array(alive))

    def _by_piece(self, positions: Int64) -> list[tuple[int, Int64, Int64]]:
        """Return (piece of the ids, where in `positions`, positions within the piece) of each that is named."""
        piece = np.searchsorted(self._id_starts, positions, side="right") - 1
        places = [(n, np.flatnonzero(piece == n)) for n in np.unique(piece).tolist()]
        return [(n, at, positions[at] - self._id_starts[n]) for n, at in places]


class SelectedRows:
    """Some rows of an index, ready to search."""

    def __init__(self, index: SegmentedIndex, mask: Mask, starts: Sequence[int]) -> None:
        """Take which of all positions [N] may be found, and where each segment starts; `starts` ends with N."""
        self._index = index
        self.rows, self.size_bytes = int(mask.sum()), 0
        self._parts: list[tuple[int, SearchIndex | ShardedIndex, Selection]] = []
        for segment, start, end in zip(index.segments, starts[:-1], starts[1:], strict=True):
            if mask[start:end].any():
                selection = segment.select(mask[start:end])
                self._parts.append((start, segment, selection))
                self.size_bytes += selection.size_bytes

    def answer(self, queries: npt.ArrayLike, k: int) -> Answer:
        """Return the k best of these rows for each query [Q, D], and raise errors, as `SearchIndex.nearest`."""
        index = self._index
        found = ((start, *s.nearest(queries, k, only)) for start, s, only in self._parts)
        return Answer(*joined(found, k), index.doc_ids, index.row_ids)


def _living(
    index: SearchIndex | ShardedIndex, dead: Int64, queries: npt.ArrayLike, k: int
) -> tuple[Int64, Float32]:
    """Return the k best of a segment that have no tombstone.

    Asks for more than k until each query has k left or the index finds no more. FAISS's own selectors
    would need parameters for each kind of index, and not every kind takes them.
    """
    most = k + len(dead)
    ask = min(2 * k, most)
    while True:
        found, scores = index.nearest(queries, ask)
        gone = (found < 0) | _is_in(dead, found)
        done = ((~gone).sum(axis=1) >= k) | (found[:, -1] < 0)
        if ask == most or done.all():
            break
        ask = min(2 * ask, most)
    scores = np.where(gone, -np.inf, scores).astype(np.float32)
    return best(np.where(gone, -1, found), scores, k)


def _is_in(sorted_values: Int64, found: Int64) -> npt.NDArray[np.bool_]:
    if not len(sorted_values):
        return np.zeros(found.shape, bool)
    at = np.minimum(np.searchsorted(sorted_values, found), len(sorted_values) - 1)
    return np.asarray(sorted_values[at] == found)


class _DocIds:
    """Document ids by position."""

    def __init__(self, ids: pa.Array) -> None:
        """Take ids, large_string or int64 [N], without nulls."""
        self.ids = ids
        _, first, *text = ids.buffers()
        self._numbers = memoryview(first).cast("q")[ids.offset :]
        self._text = memoryview(text[0]) if text else None

    def take(self, positions: Int64) -> list[str | int]:
        """Return the ids [R] at positions [R]; a few straight from the buffers, at half the cost."""
        if len(positions) > _FEW:
            return cast("list[str | int]", self.ids.take(pa.array(positions)).to_pylist())
        numbers, text = self._numbers, self._text
        if text is None:
            return [numbers[p] for p in positions.tolist()]
        return [str(text[numbers[p] : numbers[p + 1]], "utf-8") for p in positions.tolist()]
