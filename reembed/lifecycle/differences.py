"""What differs between the rows of a table, the documents of a source and the rows of an index.

Each is read in one pass. Every id and every text is kept as a 128-bit digest (BLAKE2b): 32 bytes for
each row and document, about three times that while they are sorted.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from reembed import digests
from reembed.catalog.reports import ROWS, Difference, DifferenceKind, Differences
from reembed.digests import Digests
from reembed.source.dataset import TEXT, Source
from reembed.table.documents import ByDocument, by_document
from reembed.table.read import TableVersion, as_vectors

DeadLetters = Sequence[str | int]
"""Ids of documents without a vector."""
_ROWS_A_BATCH = 65_536
EXAMPLES = 5
"""Ids that a report shows for each kind of difference."""


@dataclass(frozen=True)
class Rows:
    """Rows of a table, in its order."""

    ids: Digests
    texts: Digests
    """Digests of the texts; empty below level 2, as `carried`."""
    carried: Digests
    row_ids: npt.NDArray[np.int64]
    mismatched: Difference
    """Rows of another space."""
    corrupt: Difference
    """Rows whose vector is not finite or is zero."""

    @functools.cached_property
    def documents(self) -> ByDocument:
        """The documents that the rows are of."""
        return by_document(self.ids)


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
    columns = ["doc_id"]
    if level >= ROWS:
        columns += ["text_hash", "space", "vector", *carry]
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


def compare_ids(
    table: TableVersion, source: Source, dead: DeadLetters, rows: Rows, documents: Documents
) -> Differences:
    """Match rows and documents by id, and compare their texts and carried values if those were read."""
    named = _by_kind(digests.of_ids(dead), rows, documents)
    names = _names(table, source, dead, [ids[:EXAMPLES] for ids in named.values()])
    differences: Differences = {
        kind: Difference(len(ids), tuple(names[d] for d in ids[:EXAMPLES].tolist()))
        for kind, ids in named.items()
    }
    if len(rows.texts) and (retyped := source.retyped(table.dataset().schema)):
        differences["carried"] = Difference(len(np.unique(rows.ids)), tuple(retyped))
    return differences


def compare_index(rows: Rows, held: pa.Table) -> Differences:
    """Compare the rows of the table with the ids that the index answers with.

    Args:
        rows: rows of the table.
        held: row_id and doc_id of every row that the index finds.
    """
    row_ids = held["row_id"].to_numpy()
    gap = np.setxor1d(rows.row_ids, row_ids)
    if repeated := len(row_ids) - len(np.unique(row_ids)):
        gap = np.append(gap, np.full(repeated, -1))
    batches = held.to_batches(max_chunksize=_ROWS_A_BATCH)
    names = digests.stack(b"".join(digests.of_column(b.column("doc_id")) for b in batches))
    _, row, at = np.intersect1d(rows.row_ids, row_ids, return_indices=True)
    wrong = at[rows.ids[row] != names[at]]
    examples = held["doc_id"].take(pa.array(np.sort(wrong)[:EXAMPLES])).to_pylist()
    return {
        "unindexed": Difference(len(gap), tuple(gap[:EXAMPLES].tolist())),
        "misnamed": Difference(len(wrong), tuple(examples)),
    }


def _by_kind(dead: Digests, rows: Rows, documents: Documents) -> dict[DifferenceKind, Digests]:
    """Return the digests of the ids that differ."""
    there, at_document = np.unique(documents.ids, return_index=True)
    held = rows.documents
    common, document, row = np.intersect1d(there, held.ids, assume_unique=True, return_indices=True)
    lacking, more = np.delete(there, document), np.delete(held.ids, row)
    found: dict[DifferenceKind, Digests] = {
        "missing": np.setdiff1d(lacking, dead),
        "extra": functools.reduce(
            np.union1d, (more, np.setdiff1d(dead, there), np.intersect1d(common, dead))
        ),
        "duplicate": held.repeated,
    }
    if len(rows.texts):
        document, row = at_document[document], held.rows[row]
        found["stale"] = common[documents.texts[document] != rows.texts[row]]
        carried = documents.carried[document] != rows.carried[row]
        found["carried"] = np.setdiff1d(common[carried], found["stale"])
    return found


def _names(
    table: TableVersion, source: Source, dead: DeadLetters, groups: Sequence[Digests]
) -> dict[bytes, str | int]:
    """Return the ids of digests; reads source and table again, if anything differs."""
    wanted = np.concatenate(groups)
    if not len(wanted):
        return {}
    # A dead letter that was deleted from the source is in neither of the two.
    names = {digests.of_id(d): d for d in dead}
    columns = itertools.chain(
        (part["doc_id"] for part in source.scan()),
        (batch.column("doc_id") for batch in table.scan(["doc_id"])),
    )
    for column in columns:
        hit = np.isin(digests.stack(digests.of_column(column)), wanted)
        names |= {digests.of_id(d): d for d in column.filter(pa.array(hit)).to_pylist()}
    return names
