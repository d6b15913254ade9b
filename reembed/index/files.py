"""Saving an index beside its manifest, and loading it only if its bytes are the ones saved.

Both are named by the sha256 of the index: `<sha256>.faiss` is written first, `<sha256>.json` last and
create-only, so nothing that a release names is ever replaced. An index without a manifest was never
finished; of several that processes built of one table version, a release names one. FAISS trusts the
files it reads, so the digest is checked before.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

import faiss
from obstore.exceptions import AlreadyExistsError
from obstore.store import ObjectStore
from scipy.special import stdtrit

from reembed import faults
from reembed.catalog.index_manifest import IndexManifest
from reembed.errors import IntegrityError
from reembed.index.build import Built
from reembed.index.search import FIX, Float64, SearchIndex, read, write
from reembed.store.records import decode, encode
from reembed.store.storage import content_path, from_bytes, to_bytes

# S3 takes 10,000 parts: 16 MiB each allows indexes of 160 GB.
_CHUNK_BYTES = 16 * 2**20


def save(
    built: Built, store: ObjectStore, path: str, *, space: str, table: str, table_version: int
) -> IndexManifest:
    """Write the index, then its manifest, below `path`; the manifest that counts.

    Where the same index was saved before, with another operating point even, the first manifest counts.
    """
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as folder:
        file = Path(folder) / "built.faiss"
        write(built.index, file)
        manifest = IndexManifest(
            factory=built.factory,
            metric="inner_product",
            dim=built.index.dim,
            rows=built.index.rows,
            operating_point=built.operating_point,
            ann_recall_at_10=float(built.recalls.mean()),
            ann_recall_lower=lower_bound(built.recalls),
            tuned_on=built.tuned_on,
            num_queries=len(built.recalls),
            faiss_version=faiss.__version__,
            device=built.device,
            sha256=_digest(file),
            size_bytes=file.stat().st_size,
            space=space,
            table=table,
            table_version=table_version,
            build_seconds=round(built.build_seconds, 3),
            settings=built.settings,
            rows_since_training=built.rows_since_training,
        )
        faults.point("index.before_save")
        # Equal names hold equal bytes, so overwriting replaces nothing, and repairs a damaged file.
        place = content_path(path, manifest.sha256, "faiss")
        store.put(place, file, mode="overwrite", chunk_size=_CHUNK_BYTES)
    faults.point("index.before_manifest")
    named = content_path(path, manifest.sha256, "json")
    with suppress(AlreadyExistsError):
        store.put(named, to_bytes(encode(manifest)), mode="create")
    return read_manifest(store, path, manifest.sha256)


def finished(store: ObjectStore, path: str, table_version: int) -> IndexManifest | None:
    """The manifest of an index of this table version below `path`, if one was saved whole."""
    found = [o["path"] for page in store.list(f"{path}/") for o in page]
    digests = sorted(Path(p).stem for p in found if p.endswith(".json"))
    manifests = (read_manifest(store, path, sha256) for sha256 in digests)
    return next((m for m in manifests if m.table_version == table_version), None)


def read_manifest(store: ObjectStore, path: str, sha256: str) -> IndexManifest:
    """The manifest of the saved index with this digest.

    Raises:
        IntegrityError: there is none, it is damaged, or it is of another index.
    """
    place = content_path(path, sha256, "json")
    try:
        record = from_bytes(bytes(store.get(place).bytes()), place)
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{path} has no manifest of index {sha256[:12]}",
            "it was never finished, or was removed",
            FIX,
        ) from error
    manifest = decode(IndexManifest, record)
    if manifest.sha256 != sha256:
        raise IntegrityError(f"{place} is the manifest of index {manifest.sha256[:12]}", None, FIX)
    return manifest


def load(
    store: ObjectStore, path: str, manifest: IndexManifest, cache_dir: Path | None = None
) -> SearchIndex:
    """The index, at its operating point. With `cache_dir` the file is kept there for next time.

    Raises:
        IntegrityError: the file is missing or is not what the manifest says.
    """
    if cache_dir is not None:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _open(_fetch(store, path, manifest, cache_dir), path, manifest)
    with tempfile.TemporaryDirectory(prefix="reembed-index-") as folder:
        return _open(_fetch(store, path, manifest, Path(folder)), path, manifest)


def lower_bound(recalls: Float64) -> float:
    """One-sided 95 % Student t bound of the mean of recalls [Q]; 0 for a single query."""
    if len(recalls) < 2:
        return 0.0
    error = float(recalls.std(ddof=1)) / math.sqrt(len(recalls))
    return max(0.0, float(recalls.mean()) - float(stdtrit(len(recalls) - 1, 0.95)) * error)


def _fetch(store: ObjectStore, path: str, manifest: IndexManifest, folder: Path) -> Path:
    """The checked file in `folder`, downloaded unless it is there already."""
    # Named by our own digest of the manifest's text, which could hold anything, even ../.
    name = hashlib.sha256(manifest.sha256.encode()).hexdigest()
    file = folder / f"{name}.faiss"
    if file.exists() and _digest(file) == manifest.sha256:
        return file
    partial = folder / f"{name}.{uuid.uuid4().hex}.part"
    try:
        _download(store, content_path(path, manifest.sha256, "faiss"), manifest, partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _download(store: ObjectStore, path: str, manifest: IndexManifest, file: Path) -> None:
    try:
        found = store.get(path)
    except FileNotFoundError as error:
        raise IntegrityError(f"{path} is missing", "its manifest is there", FIX) from error
    if found.meta["size"] != manifest.size_bytes:
        raise IntegrityError(
            f"{path} is not the index that was saved",
            f"it has {found.meta['size']:,} bytes, its manifest says {manifest.size_bytes:,}",
            FIX,
        )
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != manifest.sha256:
        raise IntegrityError(
            f"{path} is not the index that was saved",
            f"its sha256 is {digest.hexdigest()}, its manifest says {manifest.sha256}",
            FIX,
        )


def _open(file: Path, path: str, manifest: IndexManifest) -> SearchIndex:
    index = read(file)
    if (index.rows, index.dim) != (manifest.rows, manifest.dim):
        raise IntegrityError(
            f"the index in {path} does not fit its manifest",
            f"{index.rows:,} vectors of {index.dim} dimensions, not "
            f"{manifest.rows:,} of {manifest.dim}",
            FIX,
        )
    index.operate(manifest.operating_point)
    return index


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
