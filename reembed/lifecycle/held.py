"""Which rows and documents a release's index holds, read segment by segment, whatever its kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reembed.catalog.index_manifest import (
    FIX,
    AnyManifest,
    LanceManifest,
    LanceSegment,
    segment_folder,
)
from reembed.catalog.receipts import FileProof
from reembed.errors import IntegrityError
from reembed.index.held import Held, HeldIds, Look
from reembed.index.types import Int64
from reembed.table import vector_index
from reembed.table.read import TableVersion


def held_by(table: TableVersion, folder: str, manifest: AnyManifest) -> Held:
    """Return what the index of a table version holds; `folder` is the index's."""
    if isinstance(manifest, LanceManifest):
        return LanceHeldIds(table, manifest)
    return HeldIds(table.storage, folder, manifest)


@dataclass(frozen=True)
class LanceHeldIds(Held):
    """Lance's index: the row ids of its files, and the table's document ids, which a search reads by row id.

    A row of a segment that the table version does not have any more is not found by a search: Lance leaves out
    deleted rows. Which rows a segment holds is read from its file, not asked of Lance's index.
    """

    table: TableVersion
    manifest: LanceManifest

    def key(self, segment: int) -> tuple[str, str]:
        """Return as `Held.key`: its name, and the digest of the file with its row ids."""
        named = self.manifest.segments[segment]
        return named.uuid, named.files["auxiliary.idx"].sha256

    def batches(
        self, segment: int, look: Look | None = None
    ) -> Iterator[tuple[Int64, Int64, pa.Array]]:
        """Yield as `Held.batches`; a position counts the rows of the segments in the order of their row ids.

        Raises:
            IntegrityError: a file is missing or is not what the manifest says, or holds other rows.
        """
        start, named = self._start(segment), self.manifest.segments[segment]
        for path, proof in self._files(named):
            if self.table.storage.digest(path) != (proof.size_bytes, proof.sha256):
                raise IntegrityError(f"{path} is not the index that was saved", None, FIX)
        held = self._row_ids(named)
        fragments = [f for f, _ in self.table.fragments() if f in named.fragments]
        if not fragments:
            return
        for batch in self.table.scan(["doc_id"], fragments):
            rows = batch.column("_rowid").to_numpy().astype(np.int64)
            places = np.minimum(np.searchsorted(held, rows), max(0, len(held) - 1))
            found = held[places] == rows
            yield places[found] + start, rows[found], batch.column("doc_id").filter(pa.array(found))

    def at(self, segment: int, places: Int64) -> tuple[Int64, pa.Array]:
        """Return as `Held.at`; rows that the table version lost cannot be read from it.

        Digests of the files are not compared, only sizes: a catch-up asks for few rows of large segments.
        """
        rows = self._row_ids(self.manifest.segments[segment])[places]
        names = self.table.take(rows, ["doc_id"])["doc_id"].combine_chunks()
        return rows, names

    def dead(self, segments: Sequence[int]) -> list[Int64]:
        """Return as `Held.dead`: rows of a segment that the table version has not; sizes are checked as in `at`."""
        return [self._dead(self.manifest.segments[segment]) for segment in segments]

    def _dead(self, named: LanceSegment) -> Int64:
        live = [f for f, _ in self.table.fragments() if f in named.fragments]
        rows = [self.table.row_ids(f) for f in live]
        there = np.concatenate([np.empty(0, np.int64), *rows])
        return np.flatnonzero(~np.isin(self._row_ids(named), there))

    def _row_ids(self, named: LanceSegment) -> Int64:
        """Return the row ids of a segment, sorted, from files of the recorded sizes."""
        storage, manifest = self.table.storage, self.manifest
        for path, proof in self._files(named):
            if storage.size(path) != proof.size_bytes:
                raise IntegrityError(f"{path} is not the index that was saved", None, FIX)
        held = np.sort(vector_index.row_ids(storage, manifest.table, named.uuid))
        if len(held) != named.rows:
            folder = segment_folder(manifest.table, named.uuid)
            what = f"{folder} holds {len(held):,} rows, its manifest says {named.rows:,}"
            raise IntegrityError(what, None, FIX)
        return held

    def _files(self, named: LanceSegment) -> list[tuple[str, FileProof]]:
        """Return path and proof of each file of a segment."""
        folder = segment_folder(self.manifest.table, named.uuid)
        return [(f"{folder}/{name}", proof) for name, proof in named.files.items()]
