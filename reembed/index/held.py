"""Which rows and documents an index holds, read segment by segment without its vectors."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from reembed.catalog.index_manifest import FIX, AnyManifest, IndexManifest
from reembed.errors import IntegrityError
from reembed.index.files import fetched, map_ids, require_fits, tombstones_of
from reembed.index.search import SearchIndex, read
from reembed.index.types import Int64
from reembed.store.storage import Storage

_ROWS_A_BATCH = 65_536
Look = Callable[[SearchIndex, Int64, Int64], None]
"""Takes a segment at its operating point, the places [P] that a search can find, and the row ids [N] of all places."""


class Held(ABC):
    """Which row and document an index answers with at each position, as a verification reads it. Picklable."""

    manifest: AnyManifest

    @property
    def rows(self) -> int:
        """Rows that a search can find."""
        return self.manifest.rows

    @property
    def segments(self) -> int:
        return len(self.manifest.segments)

    @property
    def recall(self) -> float:
        """Share of the true results that a search finds, as it was measured."""
        return self.manifest.ann_recall_at_10

    def rows_in(self, segment: int) -> int:
        """Return the number of rows of a segment, found by a search or not."""
        return self.manifest.segments[segment].rows

    def doc_ids(self, positions: list[int]) -> list[str | int]:
        """Return the document ids at positions."""
        ends = np.cumsum([s.rows for s in self.manifest.segments])
        found: list[str | int] = []
        for position in positions:
            segment = int(np.searchsorted(ends, position, side="right"))
            places = np.array([position - self._start(segment)])
            found += self.at(segment, places)[1].to_pylist()
        return found

    @abstractmethod
    def key(self, segment: int) -> tuple[str, str]:
        """Return what names a segment's files by content: equal ones hold the same."""

    @abstractmethod
    def batches(
        self, segment: int, look: Look | None = None
    ) -> Iterator[tuple[Int64, Int64, pa.Array]]:
        """Yield positions [B], row ids [B] and document ids [B] of a segment that a search can find.

        `look` is called once, while the segment is open, if its vectors and its ids are files apart.

        Raises:
            IntegrityError: a file is missing or is not what the manifest says, or they do not fit.
        """

    @abstractmethod
    def at(self, segment: int, places: Int64) -> tuple[Int64, pa.Array]:
        """Return row ids [P] and document ids [P] at places of a segment, buried or not."""

    @abstractmethod
    def dead(self, segments: Sequence[int]) -> list[Int64]:
        """Return for each of these segments the places of rows that no search finds, sorted."""

    def _start(self, segment: int) -> int:
        return sum(s.rows for s in self.manifest.segments[:segment])


@dataclass(frozen=True)
class HeldIds(Held):
    """An index of FAISS."""

    storage: Storage
    path: str
    manifest: IndexManifest

    def key(self, segment: int) -> tuple[str, str]:
        """Return as `Held.key`: the digests of the two files."""
        named = self.manifest.segments[segment]
        return named.vectors.sha256, named.ids.sha256

    def batches(
        self, segment: int, look: Look | None = None
    ) -> Iterator[tuple[Int64, Int64, pa.Array]]:
        """Yield as `Held.batches`.

        Both files of the segment are checked and mapped, not read into memory; how many vectors there are is
        what FAISS says.
        """
        named, start = self.manifest.segments[segment], self._start(segment)
        with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
            at = (self.storage, self.path, Path(name))
            batch = map_ids(fetched(*at, named.ids))
            row_ids = batch.column("row_id").to_numpy()
            found = SearchIndex(read(fetched(*at, named.vectors), mapped=True))
            require_fits(self.path, self.manifest, named, found)
            (dead,) = self._dead(at, [segment])
            if look is not None:
                found.operate(named.operating_point)
                look(found, np.delete(np.arange(named.rows), dead), row_ids)
            for first in range(0, batch.num_rows, _ROWS_A_BATCH):
                some = batch.slice(first, _ROWS_A_BATCH)
                alive = np.ones(some.num_rows, bool)
                low, high = np.searchsorted(dead, [first, first + some.num_rows])
                alive[dead[low:high] - first] = False
                places = first + np.flatnonzero(alive)
                doc_ids = some.column("doc_id").filter(pa.array(alive))
                yield places + start, row_ids[places], doc_ids

    def at(self, segment: int, places: Int64) -> tuple[Int64, pa.Array]:
        with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
            file = self.manifest.segments[segment].ids
            found = map_ids(fetched(self.storage, self.path, Path(name), file)).take(
                pa.array(places)
            )
        return found.column("row_id").to_numpy(), found.column("doc_id")

    def dead(self, segments: Sequence[int]) -> list[Int64]:
        """Return as `Held.dead`: the tombstones."""
        with tempfile.TemporaryDirectory(prefix="reembed-index-") as name:
            return self._dead((self.storage, self.path, Path(name)), segments)

    def _dead(self, at: tuple[Storage, str, Path], segments: Sequence[int]) -> list[Int64]:
        """Return the tombstones of segments, as positions within each; their file is read once."""
        dead, positions = tombstones_of(at, self.manifest), self._start(self.segments)
        if self.rows + len(dead) != positions or dead[-1:].max(initial=-1) >= positions:
            what = f"the tombstones of the index in {self.path} do not fit its manifest"
            why = f"{len(dead):,} of {positions:,} positions, where {self.rows:,} are to be found"
            raise IntegrityError(what, why, FIX)
        starts = [self._start(segment) for segment in segments]
        ends = [start + self.rows_in(n) for n, start in zip(segments, starts, strict=True)]
        cuts = zip(starts, np.searchsorted(dead, starts), np.searchsorted(dead, ends), strict=True)
        return [dead[low:high] - start for start, low, high in cuts]
