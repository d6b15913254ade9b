"""Several FAISS indexes and their ids, searched as one.

A position counts through the segments in their order. Tombstones are positions that no search
returns: rows that a later segment replaced, or whose document is gone.

Shapes: N rows in all segments, Q queries, K results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed.catalog.index_manifest import FIX
from reembed.errors import IntegrityError
from reembed.index.search import Float32, Int64, SearchIndex, require_k

_NONE = np.empty(0, np.int64)
_FEW = 20
"""Ids up to which reading them one by one is faster than Arrow's `take`."""


class SegmentedIndex:
    """Segments of one dimension with their document ids, ready to search."""

    def __init__(
        self,
        segments: Sequence[SearchIndex],
        doc_ids: Sequence[pa.Array],
        tombstones: Int64 = _NONE,
    ) -> None:
        """Take segments, the document ids of each, and tombstones int64 [T], sorted.

        Raises:
            IntegrityError: they do not fit each other.
        """
        rows = [s.rows for s in segments]
        shapes = {(s.dim, ids.type) for s, ids in zip(segments, doc_ids, strict=True)}
        if len(shapes) != 1 or rows != [len(ids) for ids in doc_ids]:
            raise IntegrityError(
                "segments of an index do not fit each other",
                f"{rows} rows with {[len(ids) for ids in doc_ids]} document ids, of {sorted(map(str, shapes))}",
                FIX,
            )
        self.segments, self._doc_ids = tuple(segments), [_DocIds(ids) for ids in doc_ids]
        self._starts = np.cumsum([0, *rows])
        if len(tombstones) and tombstones[-1] >= self._starts[-1]:
            last, most = tombstones[-1], self._starts[-1]
            raise IntegrityError(f"tombstone {last} in an index of {most:,} positions", None, FIX)
        cuts = np.searchsorted(tombstones, self._starts)
        self._dead = [
            tombstones[cuts[n] : cuts[n + 1]] - start for n, start in enumerate(self._starts[:-1])
        ]
        self._is_plain = len(rows) == 1 and not len(tombstones)
        self.rows = sum(rows) - len(tombstones)
        """Rows that a search can find."""
        self.dim = segments[0].dim
        self.scores_are_exact = all(s.scores_are_exact for s in segments)

    def nearest(self, queries: npt.ArrayLike, k: int) -> tuple[Int64, Float32]:
        """Return positions [Q, K] and scores [Q, K], and raise errors, as `SearchIndex.nearest`."""
        if self._is_plain:
            return self.segments[0].nearest(queries, k)
        require_k(k)
        found = [
            _living(segment, dead, queries, k)
            for segment, dead in zip(self.segments, self._dead, strict=True)
        ]
        starts = self._starts[:-1].tolist()
        positions = np.hstack(
            [np.where(p < 0, p, p + start) for (p, _), start in zip(found, starts, strict=True)]
        )
        return _first(np.hstack([scores for _, scores in found]), positions, k)

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
        for segment, at, within in self._by_segment(positions):
            rows[at] = self.segments[segment].row_ids[within]
        return rows

    def doc_ids(self, positions: Int64) -> list[str | int]:
        """Return the document ids [R] of positions [R]."""
        if len(self.segments) == 1:
            return self._doc_ids[0].take(positions)
        names = np.empty(len(positions), object)
        for segment, at, within in self._by_segment(positions):
            names[at] = self._doc_ids[segment].take(within)
        return list(names)

    def ids(self) -> pa.Table:
        """Return row_id and doc_id of every row that a search can find, in the order of positions."""
        held = pa.Table.from_batches(
            pa.record_batch({"row_id": s.row_ids, "doc_id": doc_ids.ids})
            for s, doc_ids in zip(self.segments, self._doc_ids, strict=True)
        )
        if self.rows == held.num_rows:
            return held
        alive = np.ones(held.num_rows, bool)
        for start, dead in zip(self._starts[:-1], self._dead, strict=True):
            alive[start + dead] = False
        return held.filter(pa.array(alive))

    def _by_segment(self, positions: Int64) -> list[tuple[int, Int64, Int64]]:
        """Return (segment, where in `positions`, positions within the segment) of each that is named."""
        segment = np.searchsorted(self._starts, positions, side="right") - 1
        places = [(n, np.flatnonzero(segment == n)) for n in np.unique(segment).tolist()]
        return [(n, at, positions[at] - self._starts[n]) for n, at in places]


def _living(
    index: SearchIndex, dead: Int64, queries: npt.ArrayLike, k: int
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
    return _first(np.where(gone, -np.inf, scores).astype(np.float32), np.where(gone, -1, found), k)


def _first(scores: Float32, positions: Int64, k: int) -> tuple[Int64, Float32]:
    """Return the k positions of each row with the highest scores; equal scores keep their order."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(positions, order, 1), np.take_along_axis(scores, order, 1)


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
            return list(self.ids.take(pa.array(positions)).to_pylist())
        numbers, text = self._numbers, self._text
        if text is None:
            return [numbers[p] for p in positions.tolist()]
        return [str(text[numbers[p] : numbers[p + 1]], "utf-8") for p in positions.tolist()]
