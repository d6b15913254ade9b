"""Which candidates of a shard are among those that all shards together re-rank.

Shards that are searched as one give their best candidates by code to one re-ranking, which takes the n best of all.
A shard that is measured alone does not know the others' codes, so it keeps a summary of its own: the score at ranks
that lie further apart the deeper they are. Between two of them each candidate counts with the higher score, so that
the cut is never below the true one: what is above it is re-ranked for sure.

Shapes: Q queries, C candidates, B blocks of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reembed.index.types import Float32, Int64


@dataclass(frozen=True)
class Blocks:
    """Candidates of some shards, best first."""

    tops: Float32
    """[Q, B]: the best score by code of each block; -inf where there are fewer."""
    sizes: npt.NDArray[np.int32]
    """[Q, B]: how many candidates each has."""

    @classmethod
    def of(cls, tops: Float32, ranks: Int64, n: int) -> Blocks:
        """Return those of one shard that offers n candidates; `ranks` [B], from 1, are those of the tops."""
        sizes = np.diff(ranks, append=n + 1).astype(np.int32)
        return cls(tops, np.broadcast_to(sizes, tops.shape))

    def joined(self, other: Blocks, n: int) -> Blocks:
        """Return those of both that decide which n candidates are best."""
        tops, sizes = np.hstack([self.tops, other.tops]), np.hstack([self.sizes, other.sizes])
        order = np.argsort(-tops, axis=1, kind="stable")
        tops, sizes = np.take_along_axis(tops, order, 1), np.take_along_axis(sizes, order, 1)
        before = np.cumsum(sizes, axis=1) - sizes
        needed = (before <= n).sum(axis=1).max(initial=0)
        return Blocks(tops[:, :needed].copy(), sizes[:, :needed].copy())  # a view would hold all

    def cut(self, n: int) -> Float32:
        """Return scores [Q, 1]: a candidate above it is among the n best. -inf where there are no more than n.

        Those at the cut are left out, as only some of equal ones may be re-ranked.
        """
        end = len(self.tops), 1
        tops = np.hstack([self.tops, np.full(end, -np.inf, np.float32)])
        held = np.cumsum(np.hstack([self.sizes, np.full(end, n + 1)]), axis=1)
        first = (held > n).argmax(axis=1)[:, None]
        cut: Float32 = np.take_along_axis(tops, first, axis=1)
        return cut
