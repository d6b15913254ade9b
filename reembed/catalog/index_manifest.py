"""The record of an index: its segments, the rows taken out of them, and how well it was measured.

indexes/RELEASE/SHA256.json      the manifest, named by the sha256 of its own bytes; a release names it
indexes/RELEASE/SHA256.faiss     vectors of one segment, by position; or a trained index without vectors
indexes/RELEASE/SHA256.arrow     row id and document id at each position of one segment; or tombstones

Every file is created once and named by its sha256, so one digest in a release proves all of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from reembed.config.settings import IndexConfig
from reembed.errors import IntegrityError
from reembed.store.paths import content_path
from reembed.store.records import decode, encode, from_bytes, to_bytes
from reembed.store.storage import Storage

FIX = "reembed status     # and serve another release, or build this one again: reembed run --fresh"


@dataclass(frozen=True)
class StoredFile:
    """A file of an index, by content."""

    sha256: str
    size_bytes: int
    ending: Literal["faiss", "arrow", "npz"]

    def path(self, folder: str) -> str:
        """Return its path below the index's folder.

        Raises:
            IntegrityError: the digest is not a sha256 in hex.
        """
        return content_path(folder, self.sha256, self.ending)


@dataclass(frozen=True)
class Segment:
    """Vectors in one file, such as a shard of a table. Its positions count from 0, in the order of its files.

    Segments that were filled from one trained index are searched as one, unless they are graphs.
    """

    kind: Literal["base", "delta"]
    trained: StoredFile
    """The index without vectors that it was filled from."""
    vectors: StoredFile
    ids: StoredFile
    """Row id and document id at each position."""
    rows: int
    factory: str
    operating_point: dict[str, int]
    """Any of nprobe, ef_search and k_factor; what ann_recall was measured with."""
    device: str
    """Where it was built."""
    faiss_version: str
    build_seconds: float
    rows_since_training: int
    """Rows that were embedded after it was trained: by catch-ups that filled it again."""
    fragments: tuple[int, ...] = ()
    """Fragments of the table whose rows it was filled with."""


@dataclass(frozen=True)
class Tombstones:
    """Positions that a search leaves out; positions count through all segments in their order."""

    file: StoredFile
    rows: int


@dataclass(frozen=True)
class IndexManifest:
    """What an index consists of, which table version it holds, and how well it was measured."""

    segments: tuple[Segment, ...]
    tombstones: Tombstones | None
    metric: str
    dim: int
    space: str
    table: str
    table_version: int
    ann_recall_at_10: float
    """Mean ann_recall@10 over the queries."""
    ann_recall_lower: float
    """Lower one-sided 95 % bound of the mean (Student t)."""
    tuned_on: str
    """queries, or documents if it had no queries; documents are easier to find."""
    num_queries: int
    settings: IndexConfig
    """Section `index` of the config it was built by; the line's catch-ups are built by it too."""

    @property
    def rows(self) -> int:
        """Rows that a search can find."""
        rows = sum(s.rows for s in self.segments)
        return rows - self.tombstones.rows if self.tombstones else rows

    @property
    def base(self) -> Segment:
        """The first segment of those that hold the whole table they were built from."""
        return self.segments[0]

    @property
    def files(self) -> list[StoredFile]:
        """Every file that the manifest names."""
        named = [file for s in self.segments for file in (s.trained, s.vectors, s.ids)]
        if self.tombstones is not None:
            named.append(self.tombstones.file)
        return list(dict.fromkeys(named))

    @property
    def sha256(self) -> str:
        """Digest of the manifest as it is stored, which is its name."""
        return hashlib.sha256(to_bytes(encode(self))).hexdigest()


def read_manifest(storage: Storage, folder: str, sha256: str) -> IndexManifest:
    """Return the manifest with this digest.

    Raises:
        IntegrityError: it is missing or damaged, names no segment, or is another index's.
    """
    path = content_path(folder, sha256, "json")
    try:
        body = storage.read_bytes(path)
    except FileNotFoundError as error:
        what = f"{folder} has no manifest of index {sha256[:12]}"
        raise IntegrityError(what, "it was never finished, or was removed", FIX) from error
    manifest = decode(IndexManifest, from_bytes(body, storage.uri(path)))
    if manifest.sha256 != sha256:
        raise IntegrityError(f"{path} is the manifest of index {manifest.sha256[:12]}", None, FIX)
    if not manifest.segments:
        raise IntegrityError(f"{path} names no segment", None, FIX)
    return manifest
