"""Search one FAISS index, and search exactly for the results it is measured against.

FAISS numbers vectors by position, in the order they were added; an index also has the table's stable
row ids in that order. Scores are inner products: vectors have unit length, or the model says its
similarity is the dot product. FAISS accepts NaN and silently never finds it, so batches are checked.

Shapes: N vectors in the table, B in a batch, D dimensions, Q queries, K results.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from reembed.catalog.index_manifest import FIX
from reembed.errors import EncoderError, IntegrityError, SpaceMismatch, UsageError

if TYPE_CHECKING:
    from reembed.index.segments import SegmentedIndex

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

RECALL_K = 10
ADD_ROWS = 262_144
# Candidates re-scored exactly per result asked for; a larger one only where recall needs it.
K_FACTORS = (10, 40, 160)


class VectorSource(Protocol):
    """Vectors to index. Batches may be iterated more than once, each time in the same order."""

    @property
    def rows(self) -> int:
        """N."""

    @property
    def dim(self) -> int:
        """D."""

    def sample(self, n: int, seed: int) -> Float32:
        """Return min(n, N) rows [., D], chosen at random."""

    def batches(self) -> Iterator[tuple[Int64, Float32]]:
        """Yield row ids [B] and vectors [B, D], every row once."""

    def ids(self) -> Iterator[tuple[Int64, pa.Array]]:
        """Yield row ids [B] and document ids [B], every row once, in the order of `batches`."""


class SearchIndex:
    """A filled FAISS index with the row id of each position."""

    def __init__(self, faiss_index: Any, row_ids: Int64) -> None:
        """Take an index and row ids int64 [N]; the index is kept, as FAISS frees its parts with it."""
        self.faiss_index = faiss_index
        self.row_ids = row_ids
        self.rows, self.dim = int(faiss_index.ntotal), int(faiss_index.d)
        self.knob: tuple[str, int] | None = None
        """The setting that trades speed for recall and its largest value; None for a full scan."""
        self.k_factors: tuple[int | None, ...] = (None,)
        """Values of k_factor worth trying, cheapest first; (None,) without a re-ranking stage."""
        self._ivf: Any = faiss.try_extract_index_ivf(faiss_index)
        self._hnsw: Any = None
        self._refine: Any = None
        inner: Any = faiss.downcast_index(faiss_index)
        base = inner
        if isinstance(inner, faiss.IndexRefine):
            self._refine, self.k_factors = inner, K_FACTORS
            base = faiss.downcast_index(inner.base_index)
        if isinstance(base, faiss.IndexHNSW):
            self._hnsw = base
            self.knob = "ef_search", max(RECALL_K, min(self.rows, 4096))
        if self._ivf is not None:
            self.knob = "nprobe", int(self._ivf.nlist)
        exact = (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat, faiss.IndexRefineFlat)
        self.scores_are_exact = isinstance(inner, exact)
        """Whether scores are inner products of the vectors as they were given."""

    def operate(self, point: dict[str, int]) -> None:
        """Set the operating point: any of nprobe, ef_search and k_factor.

        Raises:
            IntegrityError: the index has no such setting, so the point belongs to another index.
        """
        parts = {"nprobe": self._ivf, "ef_search": self._hnsw, "k_factor": self._refine}
        if any(parts.get(setting) is None for setting in point):
            raise IntegrityError(f"operating point {point} belongs to another index", fix=FIX)
        if "k_factor" in point:
            self._refine.k_factor = point["k_factor"]
        if "ef_search" in point:
            self._hnsw.hnsw.efSearch = point["ef_search"]
        if "nprobe" in point:
            self._ivf.nprobe = point["nprobe"]
            quantizer: Any = faiss.downcast_index(self._ivf.quantizer)
            if isinstance(quantizer, faiss.IndexHNSW):
                quantizer.hnsw.efSearch = max(64, 2 * point["nprobe"])

    def nearest(self, queries: npt.ArrayLike, k: int) -> tuple[Int64, Float32]:
        """Return positions [Q, K] and scores [Q, K], best first; -1 and -inf where rows ran out.

        Raises:
            UsageError: k is not a whole number from 1 up.
            SpaceMismatch: the queries have another dimension.
            EncoderError: a query holds NaN or infinity.
        """
        checked = _checked_queries(queries, self.dim, k)
        scores, positions = self.faiss_index.search(checked, int(k))
        if positions[:, -1:].min(initial=0) < 0:  # rows ran out
            scores[positions < 0] = -np.inf
        return positions, scores

    def search(self, queries: npt.ArrayLike, k: int) -> tuple[Int64, Float32]:
        """Return row ids [Q, K] and scores [Q, K], as `nearest`."""
        positions, scores = self.nearest(queries, k)
        # A row id for -1 too, which where() then drops.
        return np.where(positions < 0, -1, self.row_ids[positions]), scores


def exact_search(source: VectorSource, queries: Float32, k: int) -> tuple[Int64, Float32]:
    """Return row ids [Q, K] and scores [Q, K] of the true best; -1 and -inf where N < K.

    Raises:
        SpaceMismatch: the queries have another dimension.
        IntegrityError: a batch has another shape or dtype, a negative id or a vector that is not finite.
    """
    queries = _checked_queries(queries, source.dim, k)
    best_ids = np.full((len(queries), k), -1, dtype=np.int64)
    best_scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for ids, vectors in checked_batches(source):
        scores, places = faiss.knn(
            queries, vectors, min(k, len(ids)), metric=faiss.METRIC_INNER_PRODUCT
        )
        all_ids = np.hstack([best_ids, ids[places]])
        all_scores = np.hstack([best_scores, scores])
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
        best_ids = np.take_along_axis(all_ids, order, axis=1)
        best_scores = np.take_along_axis(all_scores, order, axis=1)
    return best_ids, best_scores


def ann_recall(
    index: SearchIndex | SegmentedIndex,
    queries: Float32,
    exact_ids: Int64,
    exact_scores: Float32,
    k: int = RECALL_K,
) -> Float64:
    """Return the share of the true best k that the index finds, per query [Q]; ties with the k-th count.

    exact_ids and exact_scores [Q, K] come from exact_search with K >= k; a larger K knows more
    ties by id. Ties count by score, as in ann-benchmarks (plotting/metrics.py), only for indexes with
    exact scores: quantised ones err either way.
    """
    found, scores = index.search(queries, k)
    kth = exact_scores[:, k - 1 : k]
    floor = kth - 1e-6 * np.maximum(1.0, np.abs(np.where(np.isfinite(kth), kth, 0.0)))
    wanted = np.where(exact_scores >= floor, exact_ids, -1)
    hits = (found[:, :, None] == wanted[:, None, :]).any(axis=2)
    if index.scores_are_exact:
        hits |= scores >= floor
    hits &= found >= 0
    recalls: Float64 = hits.sum(axis=1) / (exact_ids[:, :k] >= 0).sum(axis=1)
    return recalls


def write(index: SearchIndex, path: Path) -> None:
    """Write the FAISS index as one file, without the row ids.

    Through a file of Python's: FAISS closes its own without looking at the result, so that a disk
    that fills up at the last block leaves a shorter file and no error.
    """
    with path.open("wb") as file:
        out = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]
        faiss.write_index(index.faiss_index, out)


def read(path: Path, row_ids: Int64, *, mapped: bool = False) -> SearchIndex:
    """Read what `write` wrote. FAISS trusts its input: check the file's digest first.

    `mapped`: vectors and lists stay in the file, where the kind of index allows it.

    Raises:
        IntegrityError: it is not such a file, or has another number of rows than there are ids.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise IntegrityError(f"{path} is not a FAISS index", reason(error), FIX) from error
    if isinstance(index, faiss.IndexIDMap):
        raise IntegrityError(f"{path} numbers its vectors by ids of its own, not by position")
    if index.ntotal != len(row_ids):
        raise IntegrityError(
            f"{path} holds {index.ntotal:,} vectors, and there are {len(row_ids):,} row ids"
        )
    return SearchIndex(index, row_ids)


def checked_batches(source: VectorSource) -> Iterator[tuple[Int64, Float32]]:
    """Yield the source's batches, checked, in pieces of at most ADD_ROWS."""
    for ids, vectors in source.batches():
        if ids.ndim != 1 or len(ids) != len(vectors) or ids.dtype != np.int64:
            raise IntegrityError(f"{len(vectors)} vectors came with {ids.shape} {ids.dtype} ids")
        if len(ids) and ids.min() < 0:
            raise IntegrityError(f"row id {ids.min()} is negative; FAISS says -1 for no result")
        for start in range(0, len(ids), ADD_ROWS):
            piece = np.ascontiguousarray(vectors[start : start + ADD_ROWS], dtype=np.float32)
            check_vectors(piece, source.dim)
            yield np.ascontiguousarray(ids[start : start + ADD_ROWS]), piece


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


def require_k(k: object) -> None:
    """Refuse a number of results that cannot be one.

    Raises:
        UsageError: it is not a whole number from 1 up.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UsageError(f"k must be a whole number from 1 up, not {k!r}", None, "k=10")


def _checked_queries(queries: npt.ArrayLike, dim: int, k: int) -> Float32:
    """Return queries float32 [Q, D], contiguous, as FAISS takes them."""
    require_k(k)
    if not (isinstance(queries, np.ndarray) and queries.dtype == np.float32):
        try:
            with np.errstate(over="ignore"):  # infinity is refused later
                queries = np.asarray(queries, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise SpaceMismatch("queries must be an array of numbers [Q, D]", str(error)) from error
    vectors = np.ascontiguousarray(queries)
    if vectors.size == 0 and vectors.ndim <= 2 and len(vectors) == 0:
        return np.empty((0, dim), np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise SpaceMismatch(
            f"queries of shape {vectors.shape} against an index of {dim} dimensions",
            "they come from another model, or were truncated differently",
        )
    # The sum of squares is finite only if each number is; it can overflow, so then each is looked at.
    if not isfinite(np.vdot(vectors, vectors)) and not np.isfinite(vectors).all():
        raise EncoderError("a query vector holds NaN or infinity")
    return vectors


def reason(error: RuntimeError) -> str:
    """Return the message of FAISS without the C++ signature and file before it."""
    return re.sub(r"^Error in .*?\.(cpp|h):\d+: ", "", str(error), flags=re.DOTALL).strip()
