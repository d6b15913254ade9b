"""Compare two versions of a source: where rows may differ, how many, and since when."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import lance
import numpy as np
import pyarrow as pa

from reembed.catalog.releases import SourceRef
from reembed.source import delta as files
from reembed.source.dataset import Source
from reembed.source.delta import Delta, fragments_of
from reembed.source.documents import columns_of, doc_ids
from reembed.source.opening import open_source

_COUNTED_ROWS = 100_000


def gone(source: Source) -> str:
    """Return why a version that is not there any more cannot be compared by its files."""
    return f"version {source.version} of the source is gone, or another dataset took its place"


def delta(older: lance.LanceDataset, newest: Source) -> Delta:
    """Return where rows may differ between an older version of a dataset and `newest`."""
    columns = None
    if not newest.ref.filter:  # a filter may name any column
        columns = columns_of(newest.ref)
    return files.delta(older, newest.dataset(), columns)


def ids_left(ref: SourceRef, older: lance.LanceDataset, delta: Delta) -> pa.ChunkedArray:
    """Return ids of an older version's documents that are gone or changed by a delta."""
    left = [_ids(ref, older, delta.left)]
    for fragment, addresses in delta.thinned.items():
        rows = _ids(ref, older, [fragment])
        left.append(rows.filter(pa.array(np.isin(rows["_rowaddr"].to_numpy(), addresses))))
    return pa.concat_tables(left)["doc_id"]


def written_after(newest: Source, version: int) -> dt.datetime | None:
    """Return when the first version after `version` was written, UTC.

    If that one was cleaned up: when `version` was, which is earlier. None if neither is there.
    """
    dataset = newest.dataset()
    versions = [v["version"] for v in dataset.version_refs()]
    known = next((v for v in (version + 1, version) if v in versions), None)
    if known is None:
        return None
    if known != dataset.version:
        dataset = open_source(newest.uri, known, newest.options)
    return dataset.get_version()["timestamp"].astimezone(dt.UTC)  # type: ignore[union-attr]


def documents_changed(ref: SourceRef, older: lance.LanceDataset, newest: Source) -> int | None:
    """Return at most how many documents were written or deleted since an older version.

    `ref` names that version. None if counting reads many rows.
    """
    newer, found = newest.dataset(), delta(older, newest)
    new = fragments_of(newer, found.written)
    old = fragments_of(older, (*found.left, *found.thinned))
    if sum(f.count_rows() for f in (*new, *old)) > _COUNTED_ROWS:
        return None
    written = _ids(newest.ref, newer, found.written)["doc_id"].to_pylist()
    return len({*written, *ids_left(ref, older, found).to_pylist()})


def _ids(ref: SourceRef, dataset: lance.LanceDataset, fragments: Sequence[int]) -> pa.Table:
    """Return doc_id and `_rowaddr` of the documents in these fragments."""
    scanner = dataset.scanner(
        columns=[ref.id_column],
        filter=ref.filter,
        fragments=fragments_of(dataset, fragments),
        with_row_address=True,
    )
    rows = scanner.to_table() if fragments else scanner.projected_schema.empty_table()
    return pa.table({"doc_id": doc_ids(ref, rows), "_rowaddr": rows["_rowaddr"]})
