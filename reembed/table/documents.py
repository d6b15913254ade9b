"""How rows of a table map to documents: today, each document has one row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reembed import digests
from reembed.digests import Digests

Int64 = npt.NDArray[np.int64]


def documents_in(rows: int) -> int:
    """Return the number of documents in this many rows."""
    return rows


def rows_of(documents: int) -> int:
    """Return the number of rows of this many documents."""
    return documents


def row_of(ids: Digests, documents: Digests) -> Int64:
    """Return int64 [N]: the place among rows, whose `ids` these are, of each document's row; -1 without one."""
    return digests.position(ids, documents)


class ByDocument(NamedTuple):
    """Rows by the document that each is of, in the order of the documents' ids."""

    ids: Digests
    """Sorted, each once."""
    rows: Int64
    """Place of a row of each."""
    counts: Int64
    """Rows of each."""

    @property
    def repeated(self) -> Digests:
        """Documents with more rows than they may have."""
        return self.ids[self.counts > 1]


def by_document(ids: Digests) -> ByDocument:
    """Group rows, whose `ids` these are."""
    return ByDocument(*np.unique(ids, return_index=True, return_counts=True))
