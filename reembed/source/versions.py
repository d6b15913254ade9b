"""Compare two versions of a source: where rows may differ, how many, and since when."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import lance
import numpy as np
import pyarrow as pa

from reembed.source import delta as files
from reembed.source.dataset import Source
from reembed.source.delta import Delta, fragments_of
from reembed.source.documents import columns_read, doc_ids
from reembed.source.opening import open_source

_COUNTED_ROWS = 100_000


def why_no_delta(before: Source, after: Source) -> str | None:
    """Return why an earlier version cannot be told from a later one by its files; None if it can."""
    if after.is_as_planned(before.ref):
        return None
    return gone(before)


def gone(source: Source) -> str:
    """Return what is said of a version that is not there any more."""
    return f"version {source.version} of the source is gone, or another dataset took its place"


def delta(before: Source, after: Source) -> Delta:
    """Return where rows may differ between two versions of one dataset."""
    return _delta(after, before.dataset(), after.dataset())


def ids_left(source: Source, delta: Delta) -> pa.ChunkedArray:
    """Return ids of rows of this version that a delta to a later one says are gone or changed."""
    return _ids_left(source, source.dataset(), delta)


def _delta(source: Source, older: lance.LanceDataset, newer: lance.LanceDataset) -> Delta:
    """Compare by files; with a filter every column counts, as it may name any."""
    return files.delta(older, newer, None if source.ref.filter else columns_read(source.ref))


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


def documents_changed(since: Source, older: lance.LanceDataset, newest: Source) -> int | None:
    """Return at most how many documents were written or deleted; None if counting reads many rows.

    `older` is the dataset of `since`.
    """
    newer = newest.dataset()
    found = _delta(newest, older, newer)
    new = fragments_of(newer, found.written)
    old = fragments_of(older, (*found.left, *found.thinned))
    if sum(f.count_rows() for f in (*new, *old)) > _COUNTED_ROWS:
        return None
    written = _ids(newest, newer, found.written)["doc_id"].to_pylist()
    return len({*written, *_ids_left(since, older, found).to_pylist()})


def _ids_left(source: Source, dataset: lance.LanceDataset, delta: Delta) -> pa.ChunkedArray:
    gone = [_ids(source, dataset, delta.left)]
    for fragment, addresses in delta.thinned.items():
        rows = _ids(source, dataset, [fragment])
        gone.append(rows.filter(pa.array(np.isin(rows["_rowaddr"].to_numpy(), addresses))))
    return pa.concat_tables(gone)["doc_id"]


def _ids(source: Source, dataset: lance.LanceDataset, fragments: Sequence[int]) -> pa.Table:
    """Return doc_id and `_rowaddr` of the documents in these fragments."""
    scanner = dataset.scanner(
        columns=[source.ref.id_column],
        filter=source.ref.filter,
        fragments=fragments_of(dataset, fragments),
        with_row_address=True,
    )
    rows = scanner.to_table() if fragments else scanner.projected_schema.empty_table()
    return pa.table({"doc_id": doc_ids(source.ref, rows), "_rowaddr": rows["_rowaddr"]})
