"""Save an index as content-addressed files, and load it only if their bytes are the ones saved.

The files of a segment are written first, the manifest that names them last. All are named by their
sha256, so nothing that a release names is ever replaced; an index without a manifest was never
finished. FAISS and Arrow trust the files they read, so digests are checked before.

Files are mapped, not read: those of a local root where they are, those of an object store from a copy that is
unlinked at once. Row ids and document ids are an Arrow IPC file with one record batch, in the order of the
vectors. It is validated when it is loaded.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.special import stdtrit

from reembed.catalog.index_manifest import (
    FIX,
    AnyManifest,
    IndexManifest,
    LanceManifest,
    Segment,
    StoredFile,
    read_manifest,
)
from reembed.errors import IntegrityError
from reembed.index.search import SearchIndex, read, write
from reembed.index.segments import Opened, SegmentedIndex
from reembed.index.sharded import ShardedIndex
from reembed.index.spilled import spill
from reembed.index.types import Float64, Int64
from reembed.store.paths import content_path, is_remote
from reembed.store.records import encode
from reembed.store.storage import Storage

M = TypeVar("M", IndexManifest, LanceManifest)
_ENDINGS: dict[str, Literal["faiss", "arrow", "npz"]] = {
    ".faiss": "faiss",
    ".arrow": "arrow",
    ".npz": "npz",
}
_CHUNK_BYTES = 5 * 2**20
"""S3 takes no smaller parts."""
_PARTS = 9_000
_PARTS_AT_ONCE = 4
"""Each is held in memory while it is uploaded."""
COPY_BYTES = 5 * 2**30
"""S3 copies larger objects only in parts, which obstore does not ask for (arrow-rs-object-store, issue 563)."""
_INTEGERS = pa.schema(
    [pa.field("row_id", pa.int64(), False), pa.field("doc_id", pa.int64(), False)]
)
_STRINGS = _INTEGERS.set(1, pa.field("doc_id", pa.large_string(), False))
_TOMBSTONES = pa.schema([pa.field("position", pa.int64(), False)])


def put_index(storage: Storage, path: str, faiss_index: Any) -> StoredFile:
    """Store a FAISS index below `path`."""
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as folder:
        file = Path(folder) / "built.faiss"
        write(faiss_index, file)
        return _put(storage, path, file)


def put_ids(storage: Storage, path: str, row_ids: Int64, doc_ids: pa.Array) -> StoredFile:
    """Store row ids [N] and document ids [N] below `path`; errors as `batch_of`."""
    return _put_batch(storage, path, batch_of(row_ids, doc_ids))


def put_arrays(storage: Storage, path: str, arrays: Mapping[str, Any]) -> StoredFile:
    """Store arrays, and scalars as arrays of no dimension, as one file below `path`."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    body = out.getvalue()
    stored = StoredFile(hashlib.sha256(body).hexdigest(), len(body), "npz")
    storage.write_bytes(stored.path(path), body)
    return stored


def get_index(storage: Storage, path: str, file: StoredFile) -> Any:
    """Return a stored FAISS index in memory; IntegrityError if it is missing or changed."""
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as folder:
        return read(fetched(storage, path, Path(folder), file))


def get_arrays(storage: Storage, path: str, file: StoredFile) -> dict[str, npt.NDArray[Any]]:
    """Return stored arrays by name; IntegrityError if their file is missing or changed."""
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as folder:
        copy = fetched(storage, path, Path(folder), file)
        with np.load(copy, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}


def copy(storage: Storage, path: str, file: StoredFile, to: str) -> None:
    """Store a file of the index below `path` also below `to`; IntegrityError if it is missing or changed."""
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as folder:
        _put(storage, to, fetched(storage, path, Path(folder), file))


def share(storage: Storage, path: str, file: StoredFile, to: str) -> None:
    """Make a file of the index below `path` one of that below `to`, too.

    A local root gets a hard link. An object store copies it by itself, unread, unless it is in `too_large`: that
    one is downloaded, checked and uploaded.

    Raises:
        IntegrityError: it is missing, or a downloaded one is not the file that was saved.
    """
    if too_large(storage, [file]):
        copy(storage, path, file, to)
        return
    try:
        storage.store.copy(file.path(path), file.path(to), overwrite=True)
    except FileNotFoundError:
        what = f"{file.path(path)} is missing"
        raise IntegrityError(what, "its manifest is there", FIX) from None


def too_large(storage: Storage, files: Iterable[StoredFile]) -> list[StoredFile]:
    """Return the files that the store does not copy by itself: those above 5 GiB in an object store."""
    return [f for f in files if is_remote(storage.root) and f.size_bytes > COPY_BYTES]


def put_tombstones(storage: Storage, path: str, positions: Int64) -> StoredFile:
    """Store positions int64 [T], sorted, below `path`."""
    return _put_batch(storage, path, pa.record_batch([pa.array(positions)], schema=_TOMBSTONES))


def _put_batch(storage: Storage, path: str, batch: pa.RecordBatch) -> StoredFile:
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as folder:
        file = Path(folder) / "built.arrow"
        write_batch(batch, file)
        return _put(storage, path, file)


def row_ids_of(at: tuple[Storage, str, Path], segment: Segment) -> Int64:
    """Return the row id int64 [N] at each position of a segment of the index below a path.

    The folder holds a copy as long as it is needed. Raises IntegrityError if the file is missing or changed.
    """
    row_ids: Int64 = map_ids(fetched(*at, segment.ids)).column("row_id").to_numpy()
    return row_ids


def require_whole(storage: Storage, path: str, files: Iterable[StoredFile]) -> None:
    """Raise IntegrityError if a file is missing below `path` or has another size."""
    there = dict(storage.objects(f"{path}/"))
    for file in files:
        if there.get(file.path(path)) != file.size_bytes:
            found = there.get(file.path(path))
            raise IntegrityError(
                f"{file.path(path)} is not the file that was built",
                f"it should have {file.size_bytes:,} bytes, found: {found}",
                FIX,
            )


def put_manifest(storage: Storage, path: str, manifest: M) -> M:
    """Store the manifest, which finishes the index, and return it as it was stored."""
    storage.create(content_path(path, manifest.sha256, "json"), encode(manifest))
    return cast(M, read_manifest(storage, path, manifest.sha256))


def finished(storage: Storage, path: str, sealed_version: int) -> AnyManifest | None:
    """Return the manifest of an index of this sealed table version below `path`, if one was saved whole."""
    digests = [n.removesuffix(".json") for n in storage.names(f"{path}/") if n.endswith(".json")]
    manifests = (read_manifest(storage, path, sha256) for sha256 in digests)
    return next((m for m in manifests if m.sealed_version == sealed_version), None)


def load(
    storage: Storage, path: str, manifest: IndexManifest, held: SegmentedIndex | None = None
) -> SegmentedIndex:
    """Return the index, each segment at its operating point.

    Files are mapped. In memory are only the lists of fast-scan codes (PQ..x4fs), which FAISS cannot map; those of
    kind faiss_ondisk are copied to a file without a name, and mapped there. Segments that were filled from one
    trained index answer as one index, unless they are graphs.

    Args:
        storage: where the index is kept.
        path: its folder.
        manifest: what it consists of.
        held: an index that is open. Segments that both have are shared, not opened twice.

    Raises:
        IntegrityError: a file is missing or is not what the manifest says.
    """
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
        at = (storage, path, Path(name))
        opened = [_open(at, manifest, s, held.opened if held else ()) for s in manifest.segments]
        dead = tombstones_of(at, manifest)
    index = SegmentedIndex(_joined(opened), [o.ids for o in opened], dead, opened)
    if index.rows != manifest.rows:
        what = f"the index in {path} holds {index.rows:,} rows, its manifest says {manifest.rows:,}"
        raise IntegrityError(what, None, FIX)
    return index


def _open(
    at: tuple[Storage, str, Path], manifest: IndexManifest, segment: Segment, held: Iterable[Opened]
) -> Opened:
    """Open a segment, or return the one that is held: files of one digest hold the same."""

    def what_answers(of: Segment) -> tuple[object, ...]:
        return of.vectors, of.ids, of.trained, of.operating_point

    for other in held:
        if what_answers(other.segment) == what_answers(segment):
            return other
    ids = map_ids(fetched(*at, segment.ids))
    found = read(fetched(*at, segment.vectors), mapped=True)
    if manifest.settings.kind == "faiss_ondisk":
        spill(found, at[2])
    index = SearchIndex(found)
    require_fits(at[1], manifest, segment, index)
    index.operate(segment.operating_point)
    return Opened(segment, index, ids)


def _joined(opened: list[Opened]) -> list[SearchIndex | ShardedIndex]:
    """Return what is searched: one index for each trained one, and each graph by itself."""
    joined: list[SearchIndex | ShardedIndex] = []
    for graph, group in groupby(opened, lambda o: (o.index.is_graph, o.segment.trained)):
        shards = [o.index for o in group]
        joined += shards if graph[0] or len(shards) == 1 else [ShardedIndex(shards)]
    return joined


def tombstones_of(at: tuple[Storage, str, Path], manifest: IndexManifest) -> Int64:
    """Return the positions of tombstones int64 [T], sorted."""
    if manifest.tombstones is None:
        return np.empty(0, np.int64)
    return map_tombstones(fetched(*at, manifest.tombstones.file))


def require_fits(path: str, manifest: IndexManifest, segment: Segment, found: SearchIndex) -> None:
    """Check the number of vectors that FAISS found in a segment, and their dimension."""
    if (found.rows, found.dim) != (segment.rows, manifest.dim):
        what = f"a segment of the index in {path} does not fit its manifest"
        held = f"{found.rows:,} vectors of {found.dim} dimensions"
        raise IntegrityError(what, f"{held}, not {segment.rows:,} of {manifest.dim}", FIX)


def batch_of(row_ids: Int64, doc_ids: pa.Array) -> pa.RecordBatch:
    """Return row ids int64 [N] and document ids [N], integers or strings, as a segment stores them.

    Raises:
        IntegrityError: a document id is null, or their number differs.
    """
    if len(row_ids) != len(doc_ids) or doc_ids.null_count:
        named = len(doc_ids) - doc_ids.null_count
        what = f"{len(row_ids):,} rows have {named:,} document ids"
        raise IntegrityError(what, None, "reembed verify")
    schema = _INTEGERS if pa.types.is_integer(doc_ids.type) else _STRINGS
    return pa.record_batch([pa.array(row_ids), doc_ids.cast(schema.types[1])], schema=schema)


def write_batch(batch: pa.RecordBatch, path: Path) -> None:
    """Write the batch as one file."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as out:
        out.write_batch(batch)


def map_ids(path: Path, *schemas: pa.Schema) -> pa.RecordBatch:
    """Return row_id and doc_id of a segment; the file stays mapped as long as the batch lives.

    Raises:
        IntegrityError: it is not such a file.
    """
    what = f"{path} is not a file of ids"
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = reader.get_batch(0)
        batch.validate(full=True)  # offsets that lead out of the file
    except pa.ArrowException as error:
        raise IntegrityError(what, str(error)) from error
    known = any(batch.schema.equals(s) for s in schemas or (_INTEGERS, _STRINGS))
    if reader.num_record_batches != 1 or not known:
        raise IntegrityError(what, f"{reader.num_record_batches} batches of {batch.schema}")
    return batch


def map_tombstones(path: Path) -> Int64:
    """Return the positions int64 [T] of tombstones, sorted.

    Raises:
        IntegrityError: as `map_ids`, or they are not sorted.
    """
    positions: Int64 = map_ids(path, _TOMBSTONES).column("position").to_numpy()
    if len(positions) and (positions[0] < 0 or (np.diff(positions) <= 0).any()):
        raise IntegrityError(f"{path} holds positions that are not sorted")
    return positions


def lower_bound(recalls: Float64) -> float:
    """Return the one-sided 95 % Student t bound of the mean of recalls [Q]; 0 for a single query."""
    if len(recalls) < 2:
        return 0.0
    error = float(recalls.std(ddof=1)) / math.sqrt(len(recalls))
    return max(0.0, float(recalls.mean()) - float(stdtrit(len(recalls) - 1, 0.95)) * error)


def _put(storage: Storage, path: str, file: Path) -> StoredFile:
    """Store a file under the name of its bytes; equal names hold equal bytes, so none is replaced."""
    with file.open("rb") as data:
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    stored = StoredFile(sha256, file.stat().st_size, _ENDINGS[file.suffix])
    part = part_bytes(stored.size_bytes)
    storage.store.put(
        stored.path(path), file, mode="overwrite", chunk_size=part, max_concurrency=_PARTS_AT_ONCE
    )
    return stored


def part_bytes(size: int) -> int:
    """Return the size of the parts that a file of `size` bytes is uploaded in: S3 takes 10,000 parts of 5 GiB."""
    return max(_CHUNK_BYTES, -(-size // _PARTS))


def fetched(storage: Storage, path: str, folder: Path, file: StoredFile) -> Path:
    """Return a file of the index on this machine, its size and digest checked.

    Below a local root it is the file itself: files are created whole under the name of their digest and never
    written again, and one that is removed stays readable where it is open. Otherwise it is a copy in `folder`.

    Raises:
        IntegrityError: it is missing, or is not the file that was saved.
    """
    place = file.path(path)
    here = Path(storage.uri(place))
    if is_remote(storage.root):
        here = folder / f"{file.sha256}.{file.ending}"
    try:
        size, sha256 = _copied(storage, place, here) if is_remote(storage.root) else _read(here)
    except FileNotFoundError:
        raise IntegrityError(f"{place} is missing", "its manifest is there", FIX) from None
    what = f"{place} is not the index that was saved"
    if size != file.size_bytes:
        why = f"it has {size:,} bytes, its manifest says {file.size_bytes:,}"
        raise IntegrityError(what, why, FIX)
    if sha256 != file.sha256:
        raise IntegrityError(what, f"its sha256 is {sha256}, its manifest says {file.sha256}", FIX)
    return here


def _read(here: Path) -> tuple[int, str]:
    """Return size and sha256 of a local file."""
    with here.open("rb") as data:
        return os.fstat(data.fileno()).st_size, hashlib.file_digest(data, "sha256").hexdigest()


def _copied(storage: Storage, place: str, here: Path) -> tuple[int, str]:
    """Copy an object to a file, and return its size and sha256."""
    digest, size = hashlib.sha256(), 0
    with here.open("wb") as out:
        for chunk in storage.store.get(place).stream(min_chunk_size=_CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
