"""Save an index as content-addressed files, and load it only if their bytes are the ones saved.

The files of a segment are written first, the manifest that names them last. All are named by their
sha256, so nothing that a release names is ever replaced; an index without a manifest was never
finished. FAISS and Arrow trust the files they read, so digests are checked before.

Row ids and document ids are an Arrow IPC file with one record batch, in the order of the vectors. It is
validated when it is loaded and stays memory-mapped: a search touches only the pages of its ids.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

from reembed import faults
from reembed.catalog.index_manifest import (
    FIX,
    IndexManifest,
    Segment,
    StoredFile,
    read_manifest,
)
from reembed.errors import IntegrityError
from reembed.index.build import Built
from reembed.index.search import Float64, Int64, SearchIndex, read, write
from reembed.index.segments import SegmentedIndex
from reembed.store.paths import content_path
from reembed.store.records import encode
from reembed.store.storage import Storage

# S3 takes 10,000 parts: 16 MiB each allows indexes of 160 GB.
_CHUNK_BYTES = 16 * 2**20
_ROWS_A_BATCH = 65_536
_INTEGERS = pa.schema(
    [pa.field("row_id", pa.int64(), False), pa.field("doc_id", pa.int64(), False)]
)
_STRINGS = _INTEGERS.set(1, pa.field("doc_id", pa.large_string(), False))
_TOMBSTONES = pa.schema([pa.field("position", pa.int64(), False)])


def save(
    built: Built, storage: Storage, path: str, *, space: str, table: str, table_version: int
) -> IndexManifest:
    """Write the index as one segment below `path`, then its manifest, which is returned."""
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as folder:
        vectors, names = Path(folder) / "built.faiss", Path(folder) / "built.arrow"
        write(built.index, vectors)
        write_batch(batch_of(built.index.row_ids, built.doc_ids), names)
        faults.point("index.before_save")
        segment = Segment(
            kind="base",
            vectors=_put(storage, path, vectors),
            ids=_put(storage, path, names),
            rows=built.index.rows,
            factory=built.factory,
            operating_point=built.operating_point,
            device=built.device,
            faiss_version=faiss.__version__,
            build_seconds=round(built.build_seconds, 3),
            rows_since_training=built.rows_since_training,
        )
    manifest = IndexManifest(
        segments=(segment,),
        tombstones=None,
        metric="inner_product",
        dim=built.index.dim,
        space=space,
        table=table,
        table_version=table_version,
        ann_recall_at_10=float(built.recalls.mean()),
        ann_recall_lower=lower_bound(built.recalls),
        tuned_on=built.tuned_on,
        num_queries=len(built.recalls),
        settings=built.settings,
    )
    faults.point("index.before_manifest")
    storage.create(content_path(path, manifest.sha256, "json"), encode(manifest))
    return read_manifest(storage, path, manifest.sha256)


def finished(storage: Storage, path: str, table_version: int) -> IndexManifest | None:
    """Return the manifest of an index of this table version below `path`, if one was saved whole."""
    digests = [n.removesuffix(".json") for n in storage.names(f"{path}/") if n.endswith(".json")]
    manifests = (read_manifest(storage, path, sha256) for sha256 in digests)
    return next((m for m in manifests if m.table_version == table_version), None)


def load(storage: Storage, path: str, manifest: IndexManifest) -> SegmentedIndex:
    """Return the index, each segment at its operating point.

    Vectors are read into memory. Ids are mapped from a temporary copy that takes room on the disk until
    the index is freed: a process dies if a file that it has mapped is cut short, and no other process knows the copy.

    Raises:
        IntegrityError: a file is missing or is not what the manifest says.
    """
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
        at = (storage, path, Path(name))
        batches = [map_ids(_copy(*at, s.ids)) for s in manifest.segments]
        segments = [
            read(_copy(*at, s.vectors), batch.column("row_id").to_numpy())
            for s, batch in zip(manifest.segments, batches, strict=True)
        ]
        dead = _tombstones(at, manifest)
    for segment, found in zip(manifest.segments, segments, strict=True):
        _require_fits(path, manifest, segment, found)
        found.operate(segment.operating_point)
    index = SegmentedIndex(segments, [b.column("doc_id") for b in batches], dead)
    if index.rows != manifest.rows:
        what = f"the index in {path} holds {index.rows:,} rows, its manifest says {manifest.rows:,}"
        raise IntegrityError(what, None, FIX)
    return index


@dataclass(frozen=True)
class HeldIds:
    """Which row and document an index answers with at each position. Picklable."""

    storage: Storage
    path: str
    manifest: IndexManifest

    @property
    def rows(self) -> int:
        """Rows that a search can find."""
        return self.manifest.rows

    @property
    def segments(self) -> int:
        """Number of segments."""
        return len(self.manifest.segments)

    def key(self, segment: int) -> tuple[str, str]:
        """Return the digests that name a segment's files: equal ones hold the same."""
        named = self.manifest.segments[segment]
        return named.vectors.sha256, named.ids.sha256

    def batches(self, segment: int) -> Iterator[tuple[Int64, Int64, pa.Array]]:
        """Yield positions [B], row ids [B] and document ids [B] of a segment that a search can find.

        Both files of the segment are mapped from checked copies, not read into memory; how many
        vectors there are is what FAISS says.

        Raises:
            IntegrityError: a file is missing or is not what the manifest says, or they do not fit.
        """
        named, start = self.manifest.segments[segment], self._start(segment)
        with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
            at = (self.storage, self.path, Path(name))
            batch = map_ids(_copy(*at, named.ids))
            row_ids = batch.column("row_id").to_numpy()
            found = read(_copy(*at, named.vectors), row_ids, mapped=True)
            _require_fits(self.path, self.manifest, named, found)
            dead = self._dead(at, start, named.rows)
            for first in range(0, batch.num_rows, _ROWS_A_BATCH):
                some = batch.slice(first, _ROWS_A_BATCH)
                alive = np.ones(some.num_rows, bool)
                low, high = np.searchsorted(dead, [first, first + some.num_rows])
                alive[dead[low:high] - first] = False
                places = first + np.flatnonzero(alive)
                doc_ids = some.column("doc_id").filter(pa.array(alive))
                yield places + start, row_ids[places], doc_ids

    def doc_ids(self, positions: list[int]) -> list[str | int]:
        """Return the document ids at positions."""
        ends = np.cumsum([s.rows for s in self.manifest.segments])
        found: list[str | int] = []
        for position in positions:
            segment = int(np.searchsorted(ends, position, side="right"))
            places = np.array([position - self._start(segment)])
            found += self.at(segment, places)[1].to_pylist()
        return found

    def at(self, segment: int, places: Int64) -> tuple[Int64, pa.Array]:
        """Return row ids [P] and document ids [P] at places of a segment, tombstones or not."""
        with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
            file = self.manifest.segments[segment].ids
            found = map_ids(_copy(self.storage, self.path, Path(name), file)).take(pa.array(places))
        return found.column("row_id").to_numpy(), found.column("doc_id")

    def dead(self, segment: int) -> Int64:
        """Return the places of a segment's tombstones, sorted."""
        with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
            at = (self.storage, self.path, Path(name))
            return self._dead(at, self._start(segment), self.manifest.segments[segment].rows)

    def _start(self, segment: int) -> int:
        return sum(s.rows for s in self.manifest.segments[:segment])

    def _dead(self, at: tuple[Storage, str, Path], start: int, rows: int) -> Int64:
        """Return the tombstones of a segment, as positions within it."""
        dead, positions = _tombstones(at, self.manifest), self._start(self.segments)
        if self.rows + len(dead) != positions or dead[-1:].max(initial=-1) >= positions:
            what = f"the tombstones of the index in {self.path} do not fit its manifest"
            why = f"{len(dead):,} of {positions:,} positions, where {self.rows:,} are to be found"
            raise IntegrityError(what, why, FIX)
        return dead[slice(*np.searchsorted(dead, [start, start + rows]))] - start


def _tombstones(at: tuple[Storage, str, Path], manifest: IndexManifest) -> Int64:
    """Return the positions of tombstones int64 [T], sorted."""
    if manifest.tombstones is None:
        return np.empty(0, np.int64)
    return map_tombstones(_copy(*at, manifest.tombstones.file))


def _require_fits(path: str, manifest: IndexManifest, segment: Segment, found: SearchIndex) -> None:
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
    ending: Literal["faiss", "arrow"] = "faiss" if file.suffix == ".faiss" else "arrow"
    stored = StoredFile(sha256, file.stat().st_size, ending)
    storage.store.put(stored.path(path), file, mode="overwrite", chunk_size=_CHUNK_BYTES)
    return stored


def _copy(storage: Storage, path: str, folder: Path, file: StoredFile) -> Path:
    """Return a copy in `folder` that nobody else writes to, its size and digest checked."""
    place = file.path(path)
    try:
        found = storage.store.get(place)
    except FileNotFoundError:
        raise IntegrityError(f"{place} is missing", "its manifest is there", FIX) from None
    what, size = f"{place} is not the index that was saved", found.meta["size"]
    if size != file.size_bytes:
        why = f"it has {size:,} bytes, its manifest says {file.size_bytes:,}"
        raise IntegrityError(what, why, FIX)
    digest, copy = hashlib.sha256(), folder / f"{file.sha256}.{file.ending}"
    with copy.open("wb") as out:
        for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != file.sha256:
        why = f"its sha256 is {digest.hexdigest()}, its manifest says {file.sha256}"
        raise IntegrityError(what, why, FIX)
    return copy
