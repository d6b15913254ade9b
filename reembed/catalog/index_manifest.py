"""The record of an index: its segments, the rows taken out of them, and how well it was measured.

An index of FAISS lies in files of its own:

indexes/RELEASE/SHA256.json      the manifest, named by the sha256 of its own bytes; a release names it
indexes/RELEASE/SHA256.faiss     vectors of one segment, by position; or a trained index without vectors
indexes/RELEASE/SHA256.arrow     row id and document id at each position of one segment; or tombstones

Every file is created once and named by its sha256. Lance's own index lies beside the table that it belongs to:

indexes/RELEASE/SHA256.json      the manifest
indexes/RELEASE/SHA256.npz       the model that all segments share: centroids and codebook
tables/TABLE/_indices/UUID/      one segment, whose files the manifest names by size and sha256

One digest in a release proves all files of either kind.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from reembed.catalog.receipts import FileProof
from reembed.config.settings import IndexConfig
from reembed.errors import IntegrityError
from reembed.store.paths import content_path
from reembed.store.records import Record, decode, encode, from_bytes, to_bytes
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
    kind: Literal["faiss"] = "faiss"

    @property
    def sealed_version(self) -> int:
        """The table version that was sealed with the rows that it holds."""
        return self.table_version

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

    def stored(self, folder: str) -> dict[str, FileProof]:
        """Return size and sha256 of every file that the manifest names, by path; `folder` is the index's."""
        return {f.path(folder): FileProof(f.size_bytes, f.sha256) for f in self.files}

    @property
    def factory(self) -> str:
        """The kind of index, as a factory string."""
        return self.base.factory

    @property
    def operating_point(self) -> dict[str, int]:
        """What ann_recall was measured with."""
        return self.base.operating_point

    @property
    def device(self) -> str:
        """Where it was built."""
        return self.base.device

    @property
    def buried(self) -> int:
        """Rows of its segments that have left since."""
        return self.tombstones.rows if self.tombstones else 0

    @property
    def sha256(self) -> str:
        """Digest of the manifest as it is stored, which is its name."""
        return _digest_of(self)


@dataclass(frozen=True)
class LanceSegment:
    """A segment of Lance's index of some fragments of the table."""

    kind: Literal["base", "delta"]
    uuid: str
    """Name of its folder below the table's `_indices/`."""
    files: dict[str, FileProof]
    """By name in this folder."""
    rows: int
    """Rows that it holds, also those that left the table since."""
    fragments: tuple[int, ...]
    build_seconds: float


@dataclass(frozen=True)
class LanceManifest:
    """An index that Lance keeps beside the table, in the same version: that of the release."""

    segments: tuple[LanceSegment, ...]
    model: StoredFile
    """Centroids and codebook of all segments."""
    factory: str
    """Such as IVF256_PQ96: 256 lists, 96 bytes a vector."""
    operating_point: dict[str, int]
    """nprobe and k_factor: lists that a query looks into in each segment, and candidates scored exactly per result."""
    rows: int
    """Rows that a search can find."""
    rows_since_training: int
    metric: str
    dim: int
    space: str
    table: str
    table_version: int
    """The version with the index; its rows are those of `sealed_version`."""
    sealed_version: int
    table_tag: str
    """The tag of `table_version`."""
    ann_recall_at_10: float
    ann_recall_lower: float
    tuned_on: str
    num_queries: int
    settings: IndexConfig
    kind: Literal["lance"] = "lance"

    def stored(self, folder: str) -> dict[str, FileProof]:
        """Return size and sha256 of every file that the manifest names, by path; `folder` is the index's."""
        files = {self.model.path(folder): FileProof(self.model.size_bytes, self.model.sha256)}
        for segment in self.segments:
            at = segment_folder(self.table, segment.uuid)
            files |= {f"{at}/{name}": proof for name, proof in segment.files.items()}
        return files

    @property
    def device(self) -> str:
        """Where it was built."""
        return "cpu"

    @property
    def buried(self) -> int:
        """Rows of its segments that have left since."""
        return sum(s.rows for s in self.segments) - self.rows

    @property
    def sha256(self) -> str:
        """Digest of the manifest as it is stored, which is its name."""
        return _digest_of(self)


AnyManifest = IndexManifest | LanceManifest


def segment_folder(table: str, uuid: str) -> str:
    """Return the folder of a segment of Lance's index.

    Raises:
        IntegrityError: the name is not a UUID.
    """
    if not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid):
        raise IntegrityError(f"{uuid[:80]!r} is not the name of a segment of an index", None, FIX)
    return f"{table}/_indices/{uuid}"


def _digest_of(manifest: AnyManifest) -> str:
    return hashlib.sha256(to_bytes(encode(manifest))).hexdigest()


def as_manifest(record: Record) -> AnyManifest:
    """Return the manifest that a record describes; IntegrityError if it describes none."""
    if record["kind"] == "lance":
        return decode(LanceManifest, record)
    return decode(IndexManifest, record)


def read_manifest(storage: Storage, folder: str, sha256: str) -> AnyManifest:
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
    manifest = as_manifest(from_bytes(body, storage.uri(path)))
    if manifest.sha256 != sha256:
        raise IntegrityError(f"{path} is the manifest of index {manifest.sha256[:12]}", None, FIX)
    if not manifest.segments:
        raise IntegrityError(f"{path} names no segment", None, FIX)
    return manifest
