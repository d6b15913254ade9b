"""Indexes that were filled from one trained index, searched as one.

Each stays where it is, so that none has to be read into memory to be merged with the others. Lists near to a
query are found once, as the shards share them; the best codes of all shards are re-ranked together. The result
is that of one index with all vectors.

Shapes: N vectors in all shards, D dimensions, Q queries, C candidates, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import repeat

import numpy as np
import numpy.typing as npt

from reembed.index.queries import checked_queries
from reembed.index.search import SearchIndex
from reembed.index.selection import Mask, Selection
from reembed.index.types import Float32, Int64, Setting
from reembed.index.wider import best, joined, nearest_selected, until_filled


class ShardedIndex:
    """Shards of one index, each with the vectors that follow those of the shard before."""

    def __init__(self, shards: Sequence[SearchIndex]) -> None:
        """Take shards that were filled from one trained index and have one operating point."""
        self.shards = tuple(shards)
        self._starts = np.cumsum([0, *(s.rows for s in shards)])[:-1].tolist()
        self.rows, self.dim = sum(s.rows for s in shards), shards[0].dim
        self.scores_are_exact = shards[0].scores_are_exact
        self.selects = shards[0].selects
        """Whether a search can be limited to a selection."""

    def select(self, mask: Mask) -> Selection:
        """Return the positions that are True in mask [N], as `nearest` takes them."""
        return Selection(mask, [s.rows for s in self.shards])

    @property
    def lists(self) -> tuple[int, int]:
        """How many lists a search looks into, and how many there are."""
        return self.shards[0].lists

    @property
    def setting(self) -> Setting | None:
        return self.shards[0].setting

    def operate(self, point: dict[str, int]) -> None:
        """Set the operating point of each shard, and raise errors, as `SearchIndex.operate`."""
        for shard in self.shards:
            shard.operate(point)

    def nearest(
        self, queries: npt.ArrayLike, k: int, only: Selection | None = None
    ) -> tuple[Int64, Float32]:
        """Return positions [Q, K] and scores [Q, K], and raise errors, as `SearchIndex.nearest`."""
        checked = checked_queries(queries, self.dim, k)
        if only is not None:
            return nearest_selected(self, checked, int(k), only)
        search = partial(self.nearest_in_lists, k=int(k))
        lists = self.lists
        return until_filled(search(checked, lists[0]), search, checked, self.rows, lists)

    def nearest_in_lists(
        self, queries: Float32, nprobe: int, k: int, only: Selection | None = None
    ) -> tuple[Int64, Float32]:
        """Return positions [Q, K] and scores [Q, K] from so many lists."""
        n = self.shards[0].num_candidates(k)
        positions, scores = self.candidates(queries, n, nprobe, only)
        if not self.shards[0].rescores:
            return positions, scores
        return best(positions, self.rescored(queries, positions), k)

    def candidates(
        self, queries: Float32, n: int, nprobe: int, only: Selection | None = None
    ) -> tuple[Int64, Float32]:
        """Return positions [Q, n] and scores [Q, n] of the best, not re-ranked; -1 and -inf where rows ran out."""
        lists = self.shards[0].lists_near(queries, nprobe)
        selectors = only.selectors if only is not None else repeat(None)
        parts = zip(self._starts, self.shards, selectors, strict=False)
        return joined(((at, *shard.candidates(queries, n, lists, s)) for at, shard, s in parts), n)

    def rescored(self, queries: Float32, positions: Int64) -> Float32:
        """Return the scores [Q, C] of candidates by the re-ranking stage of the shard that has them; -inf at -1."""
        scores = np.full(positions.shape, -np.inf, np.float32)
        for shard, start in zip(self.shards, self._starts, strict=True):
            mine = (positions >= start) & (positions < start + shard.rows)
            if mine.any():
                places = np.where(mine, positions - start, -1)
                scores = np.where(mine, shard.rescored(queries, places), scores)
        return scores
