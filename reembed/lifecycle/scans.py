"""Digests of the rows of a table and of the documents of a source, read in one pass each.

Every id and every text is kept as a 128-bit digest (BLAKE2b): 32 bytes for each row and document,
about three times that while they are sorted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed import digests
from reembed.catalog.reports import ROWS, Difference
from reembed.digests import Digests
from reembed.source.dataset import TEXT, Source
from reembed.table.read import TableVersion, as_vectors

EXAMPLES = 5
"""Ids that a report shows for each kind of difference."""


@dataclass(frozen=True)
class Rows:
    """Rows of a table, in its order."""

    ids: Digests
    texts: Digests
    """Empty below level 2, as `carried`."""
    carried: Digests
    row_ids: npt.NDArray[np.int64]
    mismatched: Difference
    """Rows of another space."""
    corrupt: Difference
    """Rows whose vector is not finite or is zero."""

    @functools.cached_property
    def documents(self) -> tuple[Digests, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids of the documents that the rows are of, sorted; a row and the number of rows of each."""
        return np.unique(self.ids, return_index=True, return_counts=True)


@dataclass(frozen=True)
class Documents:
    """Documents of one version of the source, in its order."""

    ids: Digests
    texts: Digests
    carried: Digests
    texts_of: dict[bytes, tuple[str | int, str]]
    """Id and text of the documents that were asked for, by digest of the id."""


def scan_table(table: TableVersion, space: str, carry: Sequence[str], level: int) -> Rows:
    """Read the ids of every row and, from level 2, the rest."""
    columns = ["doc_id", *(["text_hash", "space", "vector", *carry] if level >= ROWS else [])]
    ids, texts, carried = bytearray(), bytearray(), bytearray()
    row_ids: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    mismatched, corrupt = _Few(), _Few()
    for batch in table.scan(columns):
        names = batch.column("doc_id")
        ids += digests.of_column(names)
        row_ids.append(batch.column("_rowid").to_numpy().astype(np.int64))
        if level < ROWS:
            continue
        texts += b"".join(batch.column("text_hash").fill_null(bytes(digests.BYTES)).to_pylist())
        carried += digests.of_rows([batch.column(c) for c in carry], batch.num_rows)
        same = pc.equal(batch.column("space"), space).fill_null(False)
        mismatched.add(names.filter(pc.invert(same)))
        norms = np.linalg.norm(as_vectors(batch.column("vector")), axis=1)
        corrupt.add(names.filter(pa.array(~(np.isfinite(norms) & (norms > 0)))))
    return Rows(
        digests.stack(ids),
        digests.stack(texts),
        digests.stack(carried),
        np.concatenate(row_ids),
        mismatched.found(),
        corrupt.found(),
    )


def scan_source(source: Source, level: int, chosen: Digests | None = None) -> Documents:
    """Read the ids of every document and, from level 2, the rest; keep the texts of `chosen` ids."""
    ids, texts, carried = bytearray(), bytearray(), bytearray()
    kept: dict[bytes, tuple[str | int, str]] = {}
    for part in source.scan():
        found = digests.of_column(part["doc_id"])
        ids += found
        if level < ROWS:
            continue
        texts += digests.of_column(part[TEXT])
        carried += digests.of_rows([part[c] for c in source.ref.carry], part.num_rows)
        if chosen is not None and len(chosen):
            for row in np.flatnonzero(np.isin(digests.stack(found), chosen)).tolist():
                text = part[TEXT][row].as_py() or b""
                name = part["doc_id"][row].as_py()
                kept[digests.of_id(name)] = (name, text.decode("utf-8", "replace"))
    return Documents(digests.stack(ids), digests.stack(texts), digests.stack(carried), kept)


class _Few:
    """Counts ids, and keeps the first few."""

    def __init__(self) -> None:
        self._count = 0
        self._first: list[Any] = []

    def add(self, ids: pa.Array) -> None:
        self._count += len(ids)
        self._first += ids[: EXAMPLES - len(self._first)].to_pylist()

    def found(self) -> Difference:
        return Difference(self._count, tuple(self._first))
