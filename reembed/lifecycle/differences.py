"""What differs between the rows of a table and the documents of a source, by id."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from reembed import digests
from reembed.catalog.reports import Difference, DifferenceKind, Differences
from reembed.digests import Digests
from reembed.lifecycle.scans import EXAMPLES, Documents, Rows
from reembed.source.dataset import Source
from reembed.table.read import TableVersion

_ROWS_A_BATCH = 65_536
DeadLetters = Sequence[str | int]
"""Ids of documents without a vector."""


def compare_ids(
    table: TableVersion, source: Source, dead: DeadLetters, rows: Rows, documents: Documents
) -> Differences:
    """Match rows and documents by id, and compare their texts and carried values if those were read."""
    named = _by_kind(digests.of_ids(dead), rows, documents)
    names = _names(table, source, dead, [group[:EXAMPLES] for group in named.values()])
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
    held, at_row, counts = rows.documents
    common, document, row = np.intersect1d(there, held, assume_unique=True, return_indices=True)
    lacking, more = np.delete(there, document), np.delete(held, row)
    found: dict[DifferenceKind, Digests] = {
        "missing": np.setdiff1d(lacking, dead),
        "extra": functools.reduce(
            np.union1d, (more, np.setdiff1d(dead, there), np.intersect1d(common, dead))
        ),
        "duplicate": held[counts > 1],
    }
    if len(rows.texts):
        document, row = at_document[document], at_row[row]
        found["stale"] = common[documents.texts[document] != rows.texts[row]]
        carried = documents.carried[document] != rows.carried[row]
        found["carried"] = np.setdiff1d(common[carried], found["stale"])
    return found


def _names(
    table: TableVersion, source: Source, dead: DeadLetters, groups: Sequence[Digests]
) -> dict[bytes, str | int]:
    """Return the ids of digests; source and table are read again, only when something differs."""
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
