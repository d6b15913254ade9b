"""What both sides of a lazy migration found, brought into the form that a rule of fusion takes, and back.

A document's key is its row in the old release.

Shapes: Q queries, D documents that the old side found, E that the new side found, K results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from reembed.catalog.lazies import Fusion
from reembed.index.types import Answer, Float32, Int64
from reembed.serving.fusion import Background, Fused, NewList, OldList, rrf, slots, zscore
from reembed.serving.live import EncodedQueries
from reembed.serving.migrated import values
from reembed.serving.new_side import Opened


class Ours(NamedTuple):
    """What the old side found."""

    queries: Any
    """[Q, dim] in the old space."""
    found: Answer


class Theirs(NamedTuple):
    """What the new side found."""

    queries: Float32
    """[Q, dim] in the new space."""
    found: Answer | None
    """None where the fusion needs no search of the new side."""


def theirs(
    opened: Opened, queries: Any, depth: int | None = None, filter: str | None = None
) -> Theirs:
    """Return the queries, texts or vectors, in the new space, and with `depth` what the new side finds for them."""
    release = opened.release
    vectors = queries if isinstance(queries, np.ndarray) else release.encode_queries(queries)
    if depth is None:
        return Theirs(vectors, None)
    asked = EncodedQueries(vectors, release.release.space.id)
    return Theirs(vectors, release.nearest(asked, depth, filter))


@dataclass(frozen=True)
class Vectors:
    """Vectors of the new space by row, of either side."""

    rows: Int64
    """[V], sorted."""
    vectors: Float32
    """[V, dim]."""

    @classmethod
    def of(cls, made: Mapping[int, Float32], dim: int) -> Vectors:
        """Return them from vectors [dim] by row."""
        rows = np.array(sorted(made), np.int64)
        return cls(
            rows, np.array([made[row] for row in rows.tolist()], np.float32).reshape(-1, dim)
        )

    def find(self, rows: Int64) -> Int64:
        """Return the place of each row [...] among these; -1 if it is not there."""
        return values(self.rows, np.arange(len(self.rows)), rows)


@dataclass(frozen=True)
class Listed:
    """The old side's list."""

    keys: Int64
    """[Q, D]; -1 where there is none."""
    new_rows: Int64
    """[Q, D], of those that are migrated; -1 of others."""

    @classmethod
    def of(cls, opened: Opened, found: Answer) -> Listed:
        """Look up which documents are migrated."""
        there = found.positions >= 0
        keys, new_rows = (np.full(there.shape, -1, np.int64) for _ in range(2))
        keys[there] = found.row_ids(found.positions[there])
        new_rows[there] = opened.migrated.find(keys[there])
        return cls(keys, new_rows)

    def not_migrated(self, first: int) -> Int64:
        """Return the rows [N] of documents in the first places that are not migrated: once each, first places first."""
        wanted = (self.keys[:, :first] >= 0) & (self.new_rows[:, :first] < 0)
        rows = self.keys[:, :first].T[wanted.T]
        return rows[np.sort(np.unique(rows, return_index=True)[1])]

    def scored(self, found: Answer, queries: Float32, stored: Vectors, now: Vectors) -> OldList:
        """Return the list with new scores: of `stored` by row of the new side, and of `now` by row of the old one."""
        at = stored.find(self.new_rows)
        at_now = now.find(self.keys)
        at = np.where(at_now >= 0, len(stored.rows) + at_now, at)
        vectors = np.concatenate([stored.vectors, now.vectors])
        migrated = at >= 0
        scores = np.zeros(migrated.shape, np.float32)
        for query, vector in enumerate(queries):
            scores[query, migrated[query]] = vectors[at[query, migrated[query]]] @ vector
        return OldList(self.keys, found.scores, migrated, scores)


def fused(rule: Fusion, opened: Opened, ours: Ours, new: Theirs, old: OldList, k: int) -> Answer:
    """Return the k best documents of each query by a rule of fusion.

    Raises:
        IntegrityError: a score is NaN or infinite.
    """
    if rule == "slots" or new.found is None:
        return _answer(slots(old, k), (old.keys, ours.found))
    found = new.found
    there = found.positions >= 0
    keys = np.full(there.shape, -1, np.int64)
    keys[there] = opened.migrated.find_old(found.row_ids(found.positions[there]))
    listed = NewList(keys, found.scores)
    if rule == "rrf" or opened.background is None:
        ranked = rrf(old, listed, k)
    else:
        sides = zip((ours.queries, new.queries), opened.background, strict=True)
        of_old, of_new = (Background.of(queries @ vectors.T) for queries, vectors in sides)
        ranked = zscore(old, listed, (of_old, of_new), k)
    return _answer(ranked, (old.keys, ours.found), (keys, found))


def cut(found: Answer, k: int) -> Answer:
    """Return the first k of each query."""
    return found._replace(positions=found.positions[:, :k], scores=found.scores[:, :k])


def _answer(ranked: Fused, *lists: tuple[Int64, Answer]) -> Answer:
    """Return documents by their keys, which are their positions; each is in one of the lists."""

    def doc_ids(keys: Int64) -> list[str | int]:
        names: dict[int, str | int] = {}
        for held, answer in lists:
            named = np.isin(held, keys)
            names |= zip(held[named].tolist(), answer.doc_ids(answer.positions[named]), strict=True)
        return [names[key] for key in keys.tolist()]

    return Answer(ranked.keys, ranked.scores, doc_ids, _same)


def _same(keys: Int64) -> Int64:
    return keys
