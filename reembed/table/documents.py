"""How rows of a table map to documents.

A document's rows lie in one fragment, and have its text hash and carried values. A run writes ROWS of
each; what looks rows up by document here takes any number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed import digests
from reembed.catalog.receipts import DeadLetter
from reembed.digests import Digests

Int64 = npt.NDArray[np.int64]

ROWS = 1
"""Rows of each document."""


def documents_in(rows: int) -> int:
    """Return the number of documents in this many rows."""
    return rows // ROWS


def rows_of(documents: int) -> int:
    """Return the number of rows of this many documents."""
    return documents * ROWS


def row_of(ids: Digests, documents: Digests) -> Int64:
    """Return int64 [N]: the place among rows, whose `ids` these are, of a row of each document; -1 without one."""
    return digests.position(ids, documents)


def rows_of_each(ids: Digests, documents: Digests) -> tuple[Int64, Int64]:
    """Return every row of these documents as two int64 [P]: the place of its document, and its own.

    `ids` are those of the rows. Pairs are in the order of `documents`; a document may be named twice.
    """
    order = np.argsort(ids, kind="stable")
    first, last = (np.searchsorted(ids[order], documents, side) for side in ("left", "right"))
    counts = last - first
    document = np.repeat(np.arange(len(documents)), counts)
    before = np.cumsum(counts) - counts
    return document, order[np.arange(len(document)) - np.repeat(before - first, counts)]


def distinct(doc_ids: pa.ChunkedArray) -> int:
    """Return the number of documents that rows with these ids are of."""
    return len(doc_ids.unique())


def whole_documents(rows: pa.Table, error: str) -> tuple[pa.Table, tuple[DeadLetter, ...]]:
    """Return the rows of documents none of whose rows has an `error`, and the others as dead letters.

    Args:
        rows: doc_id, text_hash, a column `error` with the reason or null, and more.
        error: its name; the rows come back without it.
    """
    if rows[error].null_count == rows.num_rows:
        return rows.drop_columns([error]), ()
    failed = rows.filter(rows[error].is_valid()).select(["doc_id", error, "text_hash"])
    # Of several reasons for one document, the first is kept.
    dead = {d["doc_id"]: d for d in reversed(failed.to_pylist())}
    letters = [DeadLetter(d["doc_id"], d[error], d["text_hash"].hex()) for d in dead.values()]
    whole = pc.invert(pc.is_in(rows["doc_id"], failed["doc_id"].combine_chunks()))
    return rows.filter(whole).drop_columns([error]), tuple(reversed(letters))


def best_of_each(doc_ids: list[str | int], places: Int64, k: int) -> npt.NDArray[np.bool_]:
    """Return bool [R]: which of a result's rows are the best row of one of its k best documents.

    Args:
        doc_ids: the document of each row [R], rows of one query together and the best first.
        places: the query of each row [R].
        k: documents that a query may have.
    """
    seen: dict[int, set[str | int]] = {}
    keep = np.zeros(len(doc_ids), bool)
    for row, (query, doc_id) in enumerate(zip(places.tolist(), doc_ids, strict=True)):
        found = seen.setdefault(query, set())
        if doc_id not in found and len(found) < k:
            found.add(doc_id)
            keep[row] = True
    return keep


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
        return self.ids[self.counts > ROWS]


def by_document(ids: Digests) -> ByDocument:
    """Group rows, whose `ids` these are."""
    return ByDocument(*np.unique(ids, return_index=True, return_counts=True))
