"""What `OpenRelease` asks of an index, whatever its kind."""

from __future__ import annotations

from typing import Protocol

import numpy.typing as npt

from reembed.index.search import Answer, Float32, Int64


class OpenIndex(Protocol):
    """An index that is ready to search. Threads may share it."""

    rows: int
    """Rows that a search can find."""
    dim: int
    scores_are_exact: bool
    """Whether scores are inner products of the vectors as they are stored."""

    def answer(self, queries: npt.ArrayLike, k: int) -> Answer:
        """Return the k best rows of each of queries [Q, D], best first."""

    def search(self, queries: npt.ArrayLike, k: int) -> tuple[Int64, Float32]:
        """Return row ids [Q, K] and scores [Q, K], best first; -1 and -inf where rows ran out."""

    def row_ids(self, positions: Int64) -> Int64:
        """Return the row ids [R] of positions [R]."""
