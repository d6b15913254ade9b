"""128-bit digests of ids and texts (BLAKE2b), by which rows of a source and a table are matched.

Sets are compared as sorted bytes, 16 per row, whatever the length of an id or a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BYTES = 16

_LISTS = ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list))

Digests = npt.NDArray[np.void]
"""V16 [N]."""


def digest(content: bytes) -> bytes:
    """Return 16 bytes that identify this content."""
    return hashlib.blake2b(content, digest_size=BYTES).digest()


NULL = hashlib.blake2b(digest_size=BYTES, person=b"null").digest()
"""Digest of a null text. It differs from the digest of every text, including the empty one."""


def of_id(doc_id: str | int) -> bytes:
    """Return the digest of a document's id. 7 and "7" are the same id: a column holds one type."""
    return digest(str(doc_id).encode("utf-8", "surrogatepass"))


def of_ids(doc_ids: Iterable[str | int]) -> Digests:
    """Return the digests of ids, in order."""
    return stack(b"".join(of_id(d) for d in doc_ids))


def of_column(column: pa.Array | pa.ChunkedArray) -> bytes:
    """Return the joined digests of a column of ids or texts; `NULL` for a null."""
    kind = column.type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        column = column.cast(pa.large_string()).cast(pa.large_binary())
    blake = hashlib.blake2b
    values = column.to_pylist()
    return b"".join([NULL if v is None else blake(v, digest_size=BYTES).digest() for v in values])


def of_rows(columns: Sequence[pa.Array | pa.ChunkedArray], rows: int) -> bytes:
    """Return the joined digests of each row's values in some columns; NaN equals NaN."""
    if not columns:
        return bytes(BYTES * rows)
    values = zip(*(_values(c) for c in columns), strict=True)
    return b"".join([digest(repr(v).encode("utf-8", "surrogatepass")) for v in values])


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return Python objects, with times as integers: `datetime` cannot hold all years."""
    kind = without_times(column.type)
    return list((column if kind == column.type else column.cast(kind)).to_pylist())


def without_times(kind: pa.DataType) -> pa.DataType:
    """Return the type with integers in place of times, also inside lists, structs and maps."""
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(without_times(f.type)) for f in kind])
    if pa.types.is_map(kind):
        return pa.map_(without_times(kind.key_type), without_times(kind.item_type))
    for is_kind, made in _LISTS:
        if is_kind(kind):
            return made(kind.value_field.with_type(without_times(kind.value_type)))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(without_times(kind.value_type)), kind.list_size)
    return kind


def stored(column: pa.Array) -> Digests:
    """Return a column of digests, binary(16) without nulls, as an array."""
    values = np.frombuffer(column.buffers()[1], dtype=f"V{BYTES}")
    return values[column.offset : column.offset + len(column)]


def stack(joined: bytes | bytearray) -> Digests:
    """Return joined digests as an array."""
    return np.frombuffer(bytes(joined), dtype=f"V{BYTES}")


def find(known: Digests, wanted: Digests) -> npt.NDArray[np.int64]:
    """Return int64 [N]: the place of each of `wanted` among `known`, which is sorted; -1 if it is missing."""
    if not len(known):
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, at, -1).astype(np.int64)


def position(among: Digests, wanted: Digests) -> npt.NDArray[np.int64]:
    """Return int64 [N]: the place of each of `wanted` in `among`, in any order; -1 if it is missing."""
    order = np.argsort(among)
    return np.append(order, -1)[find(among[order], wanted)]
