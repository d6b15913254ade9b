"""Row ids and document ids beside the vectors of a segment, in the order of its positions.

An Arrow IPC file with one record batch, memory-mapped: nothing is parsed when it is opened, and a
lookup touches only the pages of the ids it returns.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from reembed.catalog.index_manifest import FIX
from reembed.errors import IntegrityError
from reembed.index.search import Int64

_INTEGERS = pa.schema(
    [pa.field("row_id", pa.int64(), False), pa.field("doc_id", pa.int64(), False)]
)
_STRINGS = _INTEGERS.set(1, pa.field("doc_id", pa.large_string(), False))
_TOMBSTONES = pa.schema([pa.field("position", pa.int64(), False)])


def batch_of(row_ids: Int64, doc_ids: pa.Array) -> pa.RecordBatch:
    """Return row ids int64 [N] and document ids [N], integers or strings, as a segment stores them.

    Raises:
        IntegrityError: a document id is null, or their number differs.
    """
    if len(row_ids) != len(doc_ids) or doc_ids.null_count:
        raise IntegrityError(
            f"{len(row_ids):,} rows have {len(doc_ids) - doc_ids.null_count:,} document ids",
            None,
            "reembed verify",
        )
    schema = _INTEGERS if pa.types.is_integer(doc_ids.type) else _STRINGS
    return pa.record_batch([pa.array(row_ids), doc_ids.cast(schema.types[1])], schema=schema)


def tombstones_of(positions: Int64) -> pa.RecordBatch:
    """Return positions int64 [T] as an index stores them: sorted, each once."""
    return pa.record_batch([pa.array(np.unique(positions))], schema=_TOMBSTONES)


def write(batch: pa.RecordBatch, path: Path) -> None:
    """Write the batch as one file."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as out:
        out.write_batch(batch)


def map_ids(path: Path, sha256: str) -> pa.RecordBatch:
    """Return row_id and doc_id of a segment; the file stays mapped as long as the batch lives.

    Raises:
        IntegrityError: the file has another digest, or is not such a file.
    """
    return _mapped(path, sha256, [_INTEGERS, _STRINGS])


def map_tombstones(path: Path, sha256: str) -> Int64:
    """Return the positions int64 [T] of tombstones, sorted.

    Raises:
        IntegrityError: as `map_ids`, or they are not sorted.
    """
    positions: Int64 = _mapped(path, sha256, [_TOMBSTONES]).column("position").to_numpy()
    if len(positions) and (positions[0] < 0 or (np.diff(positions) <= 0).any()):
        raise IntegrityError(f"{path} holds positions that are not sorted")
    return positions


def _mapped(path: Path, sha256: str, schemas: list[pa.Schema]) -> pa.RecordBatch:
    # The bytes that are hashed are the bytes that are mapped, whatever is put in the file's place.
    mapped = pa.memory_map(str(path))
    found = hashlib.sha256(mapped.read_buffer()).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{path} is not the index that was saved",
            f"its sha256 is {found}, its manifest says {sha256}",
            FIX,
        )
    try:
        reader = pa.ipc.open_file(mapped)
        batch = reader.get_batch(0)
        batch.validate(full=True)  # offsets that lead out of the file
    except pa.ArrowException as error:
        raise IntegrityError(f"{path} is not a file of ids", str(error)) from error
    if reader.num_record_batches != 1 or not any(batch.schema.equals(s) for s in schemas):
        raise IntegrityError(
            f"{path} is not a file of ids", f"{reader.num_record_batches} batches of {batch.schema}"
        )
    return batch
