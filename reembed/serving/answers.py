"""What `OpenRelease` asks of an index, whatever its kind."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy.typing as npt

from reembed.index.exact import Searchable
from reembed.index.types import Answer, Float32, Int64, Setting


class Rows(Protocol):
    """Rows that are ready to search. Threads may share them."""

    @property
    def rows(self) -> int:
        """Rows that a search can find."""

    def answer(self, queries: npt.ArrayLike, k: int) -> Answer:
        """Return the k best rows of each of queries [Q, D], best first."""


class ChosenRows(Rows, Protocol):
    """Some rows of a table version."""

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that it takes beside the index."""


class OpenIndex(Rows, Protocol):
    """An index of all rows of a table version."""

    rows: int
    dim: int
    scores_are_exact: bool
    """Whether scores are inner products of the vectors as they are stored."""

    def search(self, queries: npt.ArrayLike, k: int) -> tuple[Int64, Float32]:
        """Return row ids [Q, K] and scores [Q, K], best first; -1 and -inf where rows ran out."""

    @property
    def setting(self) -> Setting | None:
        """What trades speed for recall; None if it looks at all vectors."""

    def set_to(self, value: int) -> AbstractContextManager[Searchable]:
        """Search at another value of the setting meanwhile."""

    def among(self, row_ids: Int64, condition: str) -> ChosenRows | None:
        """Return a search of only the rows with these ids [R], which are those that meet the condition.

        None if this kind of index cannot do so.
        """
