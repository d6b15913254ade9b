"""Reading what a run made, for comparing two runs."""

from __future__ import annotations

from typing import Any

import lance
import numpy as np
import pyarrow as pa

from reembed.catalog.releases import Release
from reembed.store.storage import Storage


def rows_of(storage: Storage, release: Release) -> pa.Table:
    """The release's table by doc_id, without what a run may choose freely."""
    dataset = lance.dataset(storage.uri(release.table), version=release.table_version)
    return dataset.to_table().sort_by("doc_id")


def vectors_of(table: pa.Table) -> Any:
    """float32 [N, dim]."""
    column = table["vector"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(column), -1)
