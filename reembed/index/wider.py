"""Search in more lists where a search found too few rows, and choose the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import ceil
from typing import Protocol

import numpy as np

from reembed.index.selection import Selection
from reembed.index.types import Float32, Int64


def joined(found: Iterable[tuple[int, Int64, Float32]], k: int) -> tuple[Int64, Float32]:
    """Return the k best of what parts of an index found: for each its first position, positions and scores."""
    parts = list(found)
    positions = np.hstack([np.where(p < 0, p, p + start) for start, p, _ in parts])
    if len(parts) == 1:
        return positions, parts[0][2]
    return best(positions, np.hstack([scores for *_, scores in parts]), k)


class InLists(Protocol):
    """An index that searches in as many of its lists as it is told."""

    @property
    def lists(self) -> tuple[int, int]:
        """How many lists a search looks into, and how many there are; zeros without lists."""

    def nearest_in_lists(
        self, queries: Float32, nprobe: int, k: int, only: Selection | None = None
    ) -> tuple[Int64, Float32]:
        """Return positions [Q, K] and scores [Q, K] from so many lists."""


def nearest_selected(
    index: InLists, queries: Float32, k: int, only: Selection
) -> tuple[Int64, Float32]:
    """Return positions [Q, K] and scores [Q, K] of the best rows of a selection.

    If one row in a hundred is selected, a hundred times as many lists are looked into: as many selected rows are
    seen as a search without selection sees rows, so as many of the true best k are among them.
    """
    search = partial(index.nearest_in_lists, k=k, only=only)
    nprobe, most = index.lists
    wider = min(most, ceil(nprobe / only.share))
    return until_filled(search(queries, wider), search, queries, only.count, (wider, most))


def until_filled(
    found: tuple[Int64, Float32],
    search: Callable[[Float32, int], tuple[Int64, Float32]],
    queries: Float32,
    rows: int,
    lists: tuple[int, int],
) -> tuple[Int64, Float32]:
    """Return positions [Q, K] and scores [Q, K] after a search that found fewer than K for some queries [Q, D].

    Those are searched again in twice as many lists each time, until they have K or all `rows` that there are.

    Args:
        found: positions and scores of the first search; written to.
        search: searches queries in so many lists.
        rows: rows that can be found.
        lists: how many the first search looked into, and how many there are.
    """
    positions, scores = found
    enough, (nprobe, most) = min(positions.shape[1], rows), lists
    while nprobe < most and enough:
        short = np.flatnonzero(positions[:, enough - 1] < 0)
        if not len(short):
            break
        nprobe = min(2 * nprobe, most)
        positions[short], scores[short] = search(queries[short], nprobe)
    return positions, scores


def is_full(positions: Int64) -> bool:
    """Return whether each of positions [Q, K] names a row. A reduction over an axis takes twice as long."""
    return positions.size == 0 or positions.item(positions.argmin()) >= 0


def best(ids: Int64, scores: Float32, k: int) -> tuple[Int64, Float32]:
    """Return the k ids of each row [Q, .] with the highest scores; equal scores keep their order."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
