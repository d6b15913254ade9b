"""Search a table exactly, for the results that an index is measured against, and check what is read.

FAISS accepts NaN and silently never finds it, so batches are checked. Scores are inner products.

Shapes: N vectors in the table, B in a batch, D dimensions, Q queries, K results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed.errors import IntegrityError
from reembed.index.queries import checked_queries
from reembed.index.types import RECALL_K, Float32, Float64, Int64
from reembed.index.wider import best

EXACT_K = 4 * RECALL_K
"""Exact results kept per query, so that ties with the K-th are known by id."""
ADD_ROWS = 262_144
Batch = tuple[Int64, pa.Array, Float32]
"""Row ids [B], document ids [B] and vectors [B, D]."""


class VectorSource(Protocol):
    """Vectors to index, in fragments. Batches may be read more than once, each time in the same order."""

    @property
    def rows(self) -> int:
        """N."""

    @property
    def dim(self) -> int:
        """D."""

    def fragments(self) -> list[tuple[int, int]]:
        """Return id and rows of every fragment, in the order of the table."""

    def sample(self, n: int, seed: int) -> Float32:
        """Return min(n, N) rows [., D], each chosen at random."""

    def sample_ranges(self, n: int, seed: int) -> Float32:
        """Return min(n, N) rows [., D]: one range, chosen at random, of each of many fragments."""

    def batches(self, fragments: Sequence[int] | None = None) -> Iterator[Batch]:
        """Yield the rows of these fragments (default: of all), every row once, in their order."""


class Searchable(Protocol):
    """An index whose recall can be measured."""

    scores_are_exact: bool

    def search(self, queries: npt.ArrayLike, k: int) -> tuple[Int64, Float32]:
        """Return row ids [Q, K] and scores [Q, K], best first; -1 where rows ran out."""


class ExactSearch:
    """The true best K of Q queries among the vectors it was given so far."""

    def __init__(self, queries: Float32, k: int) -> None:
        """Take queries [Q, D]."""
        self._queries = queries
        self.ids = np.full((len(queries), k), -1, np.int64)
        """[Q, K], best first; -1 where there are fewer."""
        self.scores = np.full((len(queries), k), -np.inf, np.float32)

    def add(self, ids: Int64, vectors: Float32) -> None:
        """Look at vectors [B, D] with these ids [B]."""
        most = self.ids.shape[1]
        metric = faiss.METRIC_INNER_PRODUCT
        scores, places = faiss.knn(self._queries, vectors, min(most, len(ids)), metric=metric)
        self.ids, self.scores = best(
            np.hstack([self.ids, ids[places]]), np.hstack([self.scores, scores]), most
        )


def exact_search(source: VectorSource, queries: Float32, k: int) -> tuple[Int64, Float32]:
    """Return row ids [Q, K] and scores [Q, K] of the true best; -1 and -inf where N < K.

    Raises:
        SpaceMismatch: the queries have another dimension.
        IntegrityError: a batch has another shape or dtype, a negative id or a vector that is not finite.
    """
    exact = ExactSearch(checked_queries(queries, source.dim, k), k)
    for ids, _, vectors in checked_batches(source):
        exact.add(ids, vectors)
    return exact.ids, exact.scores


def ann_recall(
    index: Searchable,
    queries: Float32,
    exact_ids: Int64,
    exact_scores: Float32,
    k: int = RECALL_K,
) -> Float64:
    """Return the share of the true best k that the index finds, per query [Q]; see `recalls`."""
    return recalls(
        index.search(queries, k), (exact_ids, exact_scores), k, by_score=index.scores_are_exact
    )


def recalls(
    found: tuple[Int64, Float32],
    exact: tuple[Int64, Float32],
    k: int = RECALL_K,
    *,
    by_score: bool,
) -> Float64:
    """Return the share of the true best k among the found ids [Q, K], per query [Q]; ties with the k-th count.

    Both are ids and scores; the exact ones [Q, E] have E >= k, and a larger E knows more ties by id. Ties count
    `by_score`, as in ann-benchmarks (plotting/metrics.py), only for exact scores: quantised ones err either way.
    """
    (found_ids, scores), (exact_ids, exact_scores) = found, exact
    kth = exact_scores[:, k - 1 : k]
    floor = kth - 1e-6 * np.maximum(1.0, np.abs(np.where(np.isfinite(kth), kth, 0.0)))
    wanted = np.where(exact_scores >= floor, exact_ids, -1)
    hits = (found_ids[:, :, None] == wanted[:, None, :]).any(axis=2)
    if by_score:
        hits |= scores >= floor
    hits &= found_ids >= 0
    share: Float64 = hits.sum(axis=1) / (exact_ids[:, :k] >= 0).sum(axis=1)
    return share


def checked_batches(
    source: VectorSource, fragments: Sequence[int] | None = None
) -> Iterator[Batch]:
    """Yield the source's batches, checked, in pieces of at most ADD_ROWS."""
    for ids, doc_ids, vectors in source.batches(fragments):
        if ids.ndim != 1 or len(ids) != len(vectors) or ids.dtype != np.int64:
            raise IntegrityError(f"{len(vectors)} vectors came with {ids.shape} {ids.dtype} ids")
        if len(doc_ids) != len(ids):
            raise IntegrityError(f"{len(ids)} rows came with {len(doc_ids)} document ids")
        if len(ids) and ids.min() < 0:
            raise IntegrityError(f"row id {ids.min()} is negative; FAISS says -1 for no result")
        for start in range(0, len(ids), ADD_ROWS):
            cut = slice(start, start + ADD_ROWS)
            piece = np.ascontiguousarray(vectors[cut], dtype=np.float32)
            check_vectors(piece, source.dim)
            yield np.ascontiguousarray(ids[cut]), doc_ids[cut], piece


def check_vectors(vectors: Float32, dim: int) -> None:
    """Refuse vectors of another dimension or with NaN or infinity.

    Raises:
        IntegrityError: naming how many.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise IntegrityError(f"vectors of shape {vectors.shape} in a table of {dim} dimensions")
    bad = ~np.isfinite(np.einsum("bd,bd->b", vectors, vectors))
    if bad.any():
        raise IntegrityError(
            f"{bad.sum()} of {len(vectors)} vectors hold NaN, infinity or an infinite norm",
            "FAISS would count them and never find them",
            "reembed verify",
        )
