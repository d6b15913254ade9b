"""Which rows and documents an index holds, read segment by segment without its vectors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from reembed.catalog.index_manifest import FIX, IndexManifest
from reembed.errors import IntegrityError
from reembed.index.files import fetched, map_ids, require_fits, tombstones_of
from reembed.index.search import Int64, SearchIndex, read
from reembed.store.storage import Storage

_ROWS_A_BATCH = 65_536


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

    def rows_in(self, segment: int) -> int:
        """Return the number of rows of a segment, tombstones or not."""
        return self.manifest.segments[segment].rows

    def key(self, segment: int) -> tuple[str, str]:
        """Return the digests that name a segment's files: equal ones hold the same."""
        named = self.manifest.segments[segment]
        return named.vectors.sha256, named.ids.sha256

    def batches(self, segment: int) -> Iterator[tuple[Int64, Int64, pa.Array]]:
        """Yield positions [B], row ids [B] and document ids [B] of a segment that a search can find.

        Both files of the segment are checked and mapped, not read into memory; how many vectors there are is
        what FAISS says.

        Raises:
            IntegrityError: a file is missing or is not what the manifest says, or they do not fit.
        """
        named, start = self.manifest.segments[segment], self._start(segment)
        with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
            at = (self.storage, self.path, Path(name))
            batch = map_ids(fetched(*at, named.ids))
            row_ids = batch.column("row_id").to_numpy()
            found = SearchIndex(read(fetched(*at, named.vectors), mapped=True))
            require_fits(self.path, self.manifest, named, found)
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
            found = map_ids(fetched(self.storage, self.path, Path(name), file)).take(
                pa.array(places)
            )
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
        dead, positions = tombstones_of(at, self.manifest), self._start(self.segments)
        if self.rows + len(dead) != positions or dead[-1:].max(initial=-1) >= positions:
            what = f"the tombstones of the index in {self.path} do not fit its manifest"
            why = f"{len(dead):,} of {positions:,} positions, where {self.rows:,} are to be found"
            raise IntegrityError(what, why, FIX)
        return dead[slice(*np.searchsorted(dead, [start, start + rows]))] - start
