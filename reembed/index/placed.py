"""Whether the vector at each position of an index is that of the row that is named there.

Ids and vectors lie in two files. Recall is measured by positions, and ids are compared with ids: neither shows
that a position means the same row in both. So some rows are searched by the vectors that the table has for them.

Shapes: N positions in a segment, P of them that a search may find, R rows that are searched, D dimensions, K results.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

from reembed.index.search import SearchIndex
from reembed.index.types import RECALL_K, Float32, Int64

SAMPLE = 100
"""Rows of a segment that are searched."""
_EQUAL = 1e-3
"""Share by which the score of a row that is as near may be lower: vectors are stored in 16 bits or more."""


def misplaced(
    index: SearchIndex,
    places: Int64,
    row_ids: Int64,
    vectors_of: Callable[[Int64], Float32],
    recall: float,
) -> Int64:
    """Return the places of sampled rows that a search by their own vectors misses; none if recall explains as many.

    A row is missed if it is not among the results while one of them is less near to the vector, by the table.

    Args:
        index: a segment at its operating point.
        places: int64 [P], sorted.
        row_ids: int64 [N].
        vectors_of: returns the table's vectors float32 [R, D] of row ids [R].
        recall: the share of true results that the index is known to find.
    """
    drawn = np.random.default_rng(len(places))
    asked = places[drawn.choice(len(places), min(SAMPLE, len(places)), replace=False)]
    vectors = vectors_of(row_ids[asked])
    usable = np.isfinite(vectors).all(axis=1)
    asked, vectors = asked[usable], vectors[usable]
    if not len(asked):
        return asked
    found, _ = index.nearest(vectors, RECALL_K)
    absent = np.flatnonzero(~(found == asked[:, None]).any(axis=1))
    nearer = [_all_as_near(vectors[n], found[n], places, row_ids, vectors_of) for n in absent]
    missed: Int64 = asked[absent[~np.array(nearer, bool)]]
    by_chance = len(asked) * (1 - recall) + 3 * sqrt(len(asked) * recall * (1 - recall)) + 1
    return missed if len(missed) > by_chance else missed[:0]


def _all_as_near(
    vector: Float32,
    found: Int64,
    places: Int64,
    row_ids: Int64,
    vectors_of: Callable[[Int64], Float32],
) -> bool:
    """Return whether all results [K] of a row's vector [D] that a search may find are as near to it as the row."""
    at = np.searchsorted(places, found)
    alive = found[places[np.minimum(at, len(places) - 1)] == found]
    scores = vectors_of(row_ids[alive]) @ vector
    return bool((scores >= (1 - _EQUAL) * (vector @ vector)).all())
