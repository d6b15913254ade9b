"""Lance's index of a release, searched where it lies.

Positions are row ids of the table. Document ids come with the search itself, and nothing is loaded: Lance reads
centroids once, lists and rows when a query looks into them, and keeps what it read in its cache.

Shapes: Q queries, D dimensions, K results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt

from reembed.catalog.index_manifest import FIX, LanceManifest
from reembed.errors import IntegrityError
from reembed.index.queries import checked_queries
from reembed.index.types import Answer, Float32, Int64, Setting
from reembed.index.wider import until_filled
from reembed.table.read import TableVersion
from reembed.table.vector_index import find, segments_of
from reembed.table.vector_model import Kind


class LanceIndex:
    """A table version with Lance's index, ready to search."""

    scores_are_exact = True
    """Candidates are scored again by the table's own vectors."""

    def __init__(
        self, table: TableVersion, *, rows: int, lists: int, metric: str, point: dict[str, int]
    ) -> None:
        """Take the version that has the index, and the operating point: nprobe and perhaps k_factor."""
        self.table, self.rows, self.dim = table, rows, table.dim
        self._lists, self._metric, self._point = lists, metric, point
        self._condition: str | None = None

    @classmethod
    def open(cls, table: TableVersion, folder: str, manifest: LanceManifest) -> LanceIndex:
        """Check that the version has the manifest's segments, and that their files have the recorded sizes.

        Digests are compared by `promote` and `verify`: hashing would read the whole index.

        Raises:
            IntegrityError: naming the segment or file.
        """
        named = {segment.uuid for segment in manifest.segments}
        if segments_of(table.dataset()).keys() != named:
            what = f"{table.path} version {table.version} has another index than its manifest names"
            raise IntegrityError(what, None, FIX)
        for path, proof in manifest.stored(folder).items():
            if (size := table.storage.size(path)) != proof.size_bytes:
                why = f"it has {size} bytes, its manifest says {proof.size_bytes:,}"
                raise IntegrityError(f"{path} is not the index that was saved", why, FIX)
        point = manifest.operating_point
        kind = Kind.named(manifest.factory)
        assert kind is not None  # a build wrote it
        return cls(table, rows=manifest.rows, lists=kind.lists, metric=manifest.metric, point=point)

    def operating_at(self, point: dict[str, int]) -> LanceIndex:
        """Return the same index at another operating point."""
        return LanceIndex(
            self.table, rows=self.rows, lists=self._lists, metric=self._metric, point=point
        )

    @property
    def setting(self) -> Setting | None:
        """How many lists a search looks into."""
        return Setting("nprobe", self._point["nprobe"], 1, self._lists)

    @contextmanager
    def set_to(self, value: int) -> Iterator[LanceIndex]:
        """Search in another number of lists."""
        yield self.operating_at({**self._point, "nprobe": value})

    def among(self, row_ids: Int64, condition: str) -> LanceIndex:
        """Return a search of only the rows that meet a condition; they have these ids [R], one at least.

        Lance applies it first. As many more lists are looked into as there are fewer rows, see
        `nearest_selected` in index/wider.py.
        """
        nprobe = math.ceil(self._point["nprobe"] * self.rows / len(row_ids))
        found = self.operating_at({**self._point, "nprobe": min(nprobe, self._lists)})
        found.rows, found._condition = len(row_ids), condition
        return found

    size_bytes = 0
    """Of its own, if it is of chosen rows."""

    def answer(self, queries: npt.ArrayLike, k: int) -> Answer:
        """Return row ids, scores and document ids of the k best rows of each query.

        Raises:
            UsageError, SpaceMismatch, EncoderError: as `SearchIndex.nearest`.
        """
        checked = checked_queries(queries, self.dim, k)
        names: dict[int, str | int] = {}
        search = partial(self._nearest, k=k, names=names)
        nprobe = self._point["nprobe"]
        found = search(checked, nprobe)
        rows, scores = until_filled(found, search, checked, self.rows, (nprobe, self._lists))
        return Answer(rows, scores, lambda at: [names[row] for row in at.tolist()], self.row_ids)

    def _nearest(
        self, queries: Float32, nprobe: int, k: int, names: dict[int, str | int]
    ) -> tuple[Int64, Float32]:
        """Return row ids [Q, K] and scores [Q, K]; note the document ids of the rows."""
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        if not len(queries):
            return rows, scores
        k_factor = self._point.get("k_factor")
        found = find(self.table, queries, k, nprobe, k_factor, self._condition)
        query = found["query_index"].to_numpy()
        order = np.lexsort((found["_distance"].to_numpy(), query))
        query, ids = query[order], found["_rowid"].to_numpy().astype(np.int64)[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        rows[query, place] = ids
        scores[query, place] = 1 - found["_distance"].to_numpy()[order]
        if self._metric == "cosine":
            scores *= np.linalg.norm(queries, axis=1)[:, None]
        names.update(zip(found["_rowid"].to_pylist(), found["doc_id"].to_pylist(), strict=True))
        return rows, scores

    def search(self, queries: npt.ArrayLike, k: int) -> tuple[Int64, Float32]:
        """Return row ids [Q, K] and scores [Q, K], best first; -1 and -inf where rows ran out."""
        found = self.answer(queries, k)
        return found.positions, found.scores

    def row_ids(self, positions: Int64) -> Int64:
        """Return the positions [R]: they are row ids."""
        return positions
