"""Fill a trained index with the vectors of some fragments: one shard.

FAISS silently accepts lost rows, so they are counted after filling. Shapes: N vectors in the shard,
Q queries, E exact results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from reembed.errors import IntegrityError, ReembedError
from reembed.index import memory
from reembed.index.exact import EXACT_K, ExactSearch, VectorSource, checked_batches
from reembed.index.search import SearchIndex, reason
from reembed.index.train import Device
from reembed.index.types import Float32, Int64


@dataclass(frozen=True)
class Filled:
    """A filled shard: its index, row ids [N] and document ids [N] by position."""

    index: SearchIndex
    row_ids: Int64
    doc_ids: pa.Array
    exact: tuple[Int64, Float32]
    """Positions [Q, E] and scores [Q, E] of the true best in this shard."""


def fill(
    trained: Any, source: VectorSource, fragments: Sequence[int], queries: Float32, device: Device
) -> Filled:
    """Add every vector of these fragments to the trained index, and search them exactly in the same pass.

    Raises:
        IntegrityError: rows are missing, repeated, not finite or of another dimension.
        ReembedError: FAISS could not add them.
    """
    memory.return_freed_buffers()
    rows = dict(source.fragments())
    expected = sum(rows[fragment] for fragment in fragments)
    _reserve(trained, expected)
    index = device.moved_to(trained)
    exact = ExactSearch(queries, EXACT_K)
    row_ids, doc_ids, held = [], [], 0
    for ids, names, vectors in checked_batches(source, fragments):
        try:
            index.add(vectors)
        except RuntimeError as error:
            what = f"FAISS could not add {len(ids):,} vectors"
            raise ReembedError(what, reason(error), "reembed run --set index.device=cpu") from error
        exact.add(np.arange(held, held + len(ids)), vectors)
        row_ids.append(ids)
        doc_ids.append(_copied(names))
        held += len(ids)
    filled = SearchIndex(device.moved_back(index))
    together = np.concatenate(row_ids) if row_ids else np.empty(0, np.int64)
    _check(filled, together, expected)
    return Filled(filled, together, _joined(doc_ids), (exact.ids, exact.scores))


def _reserve(index: Any, rows: int) -> None:
    """Reserve room for codes that lie in one piece: growing it would need twice as much. Rows take it as they come."""
    if isinstance(index, faiss.IndexRefine):
        _reserve(faiss.downcast_index(index.base_index), rows)
        _reserve(faiss.downcast_index(index.refine_index), rows)
    elif isinstance(index, faiss.IndexHNSW):
        _reserve(faiss.downcast_index(index.storage), rows)
    elif isinstance(index, faiss.IndexFlatCodes):
        index.codes.resize(rows * index.code_size)
        memory.forget(int(index.codes.data()), index.codes.size())
        index.codes.resize(0)


def _check(index: SearchIndex, row_ids: Int64, expected: int) -> None:
    if len(row_ids) != expected or index.rows != expected:
        raise IntegrityError(
            f"the table has {expected:,} rows there, but {len(row_ids):,} were read"
        )
    # np.unique of integers hashes them: 70 times the cost of sorting (numpy 2.4).
    repeated = np.count_nonzero(np.diff(np.sort(row_ids)) == 0)
    if repeated:
        raise IntegrityError(f"{repeated:,} row ids appear more than once", fix="reembed verify")


def _copied(names: pa.Array) -> pa.Array:
    """Return the ids in memory of their own: a column that Lance hands over keeps its whole batch, vectors included."""
    return pa.concat_arrays([names.slice(0, 1), names.slice(1)]) if len(names) else names


def _joined(names: list[pa.Array]) -> pa.Array:
    together = pa.chunked_array(names)
    if pa.types.is_string(together.type):  # 32-bit offsets: one array of them holds 2 GiB
        together = together.cast(pa.large_string())
    return together.combine_chunks()
