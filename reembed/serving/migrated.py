"""Which documents the new side of a lazy migration owns: those with the same id and text hash on both sides.

A document that changed or left since is not among them: the old side owns it. They are kept as pairs of row ids,
16 bytes a document, so a search looks up what the old index found without reading or hashing ids.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reembed.index.types import Int64
from reembed.table.read import Grown, TableVersion, grown

_AT_ONCE = 500_000
"""Documents of the new side that are looked for in one reading of the old side's ids."""
_KEY = ["doc_id", "text_hash"]
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Migrated:
    """Rows of one version of the old table and of one version of the new one that are of the same text."""

    old: TableVersion
    new: TableVersion
    old_rows: Int64
    """[M], sorted."""
    new_rows: Int64
    """[M], in the order of `old_rows`."""

    @classmethod
    def read(cls, old: TableVersion, new: TableVersion, before: Migrated | None = None) -> Migrated:
        """Compare ids and text hashes of two table versions.

        Where `before` is of the same old version, as it is open, only what came since on the new side is compared.
        """
        pairs = [np.empty((2, 0), np.int64)]
        fragments: tuple[int, ...] | None = None
        if before and before.old is old and (since := _since(before.new, new)):
            fragments = since.added
            kept = ~np.isin(before.new_rows, since.left, assume_unique=True)
            pairs.append(np.stack([before.old_rows[kept], before.new_rows[kept]]))
        pairs += [_matched(old, some) for some in _chunks(new, fragments)]
        old_rows, new_rows = np.concatenate(pairs, axis=1)
        order = np.argsort(old_rows)
        return cls(old, new, old_rows[order], new_rows[order])

    def __len__(self) -> int:
        """Return the number of documents that are migrated."""
        return len(self.old_rows)

    def find(self, old_rows: Int64) -> Int64:
        """Return the new side's row [R] of each of these rows of the old side [R]; -1 if it is not migrated."""
        return values(self.old_rows, self.new_rows, old_rows)

    def find_old(self, new_rows: Int64) -> Int64:
        """Return the old side's row [R] of each of these rows of the new side [R]; -1 if it does not own it."""
        known, old_rows = self._by_new
        return values(known, old_rows, new_rows)

    @functools.cached_property
    def _by_new(self) -> tuple[Int64, Int64]:
        order = np.argsort(self.new_rows)
        return self.new_rows[order], self.old_rows[order]


def values(known: Int64, values: Int64, wanted: Int64) -> Int64:
    """Return the value [...] of each of `wanted` [...] among `known` [M], which is sorted; -1 where it is not."""
    if not len(known):
        return np.full(wanted.shape, -1, np.int64)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, values[at], -1)


def _since(before: TableVersion, new: TableVersion) -> Grown | None:
    """Return what a table has since a version; None if it is another table, or gc removed what that version had."""
    if before.path != new.path:
        return None
    try:
        return grown(before, new)
    except (OSError, ValueError):
        return None


def _chunks(new: TableVersion, fragments: tuple[int, ...] | None) -> Iterator[pa.Table]:
    """Yield ids, text hashes and row ids of all fragments or of some, so many documents at once."""
    if fragments == ():
        return
    held, rows = [], 0
    for batch in new.scan(_KEY, fragments):
        held.append(batch)
        rows += batch.num_rows
        if rows >= _AT_ONCE:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _matched(old: TableVersion, some: pa.Table) -> Int64:
    """Return row ids [2, M] of the documents of `some`, rows of the new table, that the old one has with that text."""
    kind = old.dataset().schema.field("doc_id").type
    theirs = some.set_column(
        some.schema.get_field_index("doc_id"), "doc_id", some["doc_id"].cast(kind)
    )
    ids = theirs["doc_id"].combine_chunks()
    ours = old.matching({"doc_id": ids}, _KEY).drop_columns(["_rowaddr"])
    both = ours.join(theirs, _KEY, join_type="inner", right_suffix="_new")
    return np.stack([both[c].to_numpy().astype(np.int64) for c in ("_rowid", "_rowid_new")])
