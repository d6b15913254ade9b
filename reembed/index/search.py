"""Search, write, read and merge FAISS indexes.

FAISS numbers vectors by position, in the order they were added. Scores are inner products: vectors have
unit length, or the model says its similarity is the dot product.

Shapes: N vectors in the index, D dimensions, Q queries, K results.
"""

from __future__ import annotations

import re
from math import isfinite
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from reembed.catalog.index_manifest import FIX
from reembed.errors import EncoderError, IntegrityError, SpaceMismatch, UsageError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

RECALL_K = 10
# Candidates re-scored exactly per result asked for; a larger one only where recall needs it.
K_FACTORS = (10, 40, 160)


class SearchIndex:
    """A filled FAISS index."""

    def __init__(self, faiss_index: Any) -> None:
        """Take an index, which is kept, as FAISS frees its parts with it."""
        self.faiss_index = faiss_index
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
        checked = checked_queries(queries, self.dim, k)
        scores, positions = self.faiss_index.search(checked, int(k))
        if positions[:, -1:].min(initial=0) < 0:  # rows ran out
            scores[positions < 0] = -np.inf
        return positions, scores

    def merge(self, other: SearchIndex) -> SearchIndex:
        """Return one index with the vectors of both, those of `other` last; neither can be used any more.

        Both were filled from one trained index, so the result is what one fill with all vectors gives.
        """
        _merge(self.faiss_index, other.faiss_index)
        return SearchIndex(self.faiss_index)

    @property
    def merges(self) -> bool:
        """Whether this kind of index can be merged; graphs and some codes in blocks cannot."""
        parts = _parts(self.faiss_index)
        try:
            for part in parts:
                part.check_compatible_for_merge(part)
        except RuntimeError:
            return False
        blocks = [p for p in parts if isinstance(p, faiss.IndexIVFFastScan)]
        return all(isinstance(p, faiss.IndexIVFPQFastScan) for p in blocks)


def _parts(index: Any) -> list[Any]:
    """Return the indexes that hold the vectors: several where results are scored again by another one."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _parts(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _parts(index.base_index) + _parts(index.refine_index)
    return [index]


def _merge(into: Any, other: Any) -> None:
    for mine, theirs in zip(_parts(into), _parts(other), strict=True):
        if isinstance(mine, faiss.IndexIVFPQFastScan):
            _merge_fast_scan(mine, theirs)
            continue
        # Lists hold the number of each vector; other kinds number by place.
        mine.merge_from(theirs, mine.ntotal if isinstance(mine, faiss.IndexIVF) else 0)
    _count(into)


def _merge_fast_scan(into: Any, other: Any) -> None:
    """Merge lists of codes in blocks: unpacked, joined and packed again.

    FAISS's own merge writes beyond the end of a list whose length is a multiple of a block's bytes
    (`BlockInvertedLists::add_entries` in 1.15.1).
    """
    lists, more = _unpacked(into), _unpacked(other)
    lists.merge_from(more, into.ntotal)
    joined = faiss.IndexIVFPQ(
        into.quantizer, into.d, into.nlist, into.pq.M, into.pq.nbits, into.metric_type
    )
    joined.pq, joined.by_residual, joined.is_trained = into.pq, into.by_residual, True
    lists.this.disown()
    joined.replace_invlists(lists, True)  # its copy has lists of its own only if it has
    packed = faiss.IndexIVFPQFastScan(joined, into.bbs)
    packed.own_invlists = False
    into.replace_invlists(packed.invlists, True)
    into.ntotal += other.ntotal


def _unpacked(index: Any) -> Any:
    """Return the lists of a fast-scan index with one code after the other."""
    lists = faiss.ArrayInvertedLists(index.nlist, index.pq.code_size)
    index.orig_invlists = lists
    index.reconstruct_orig_invlists()
    index.orig_invlists = None
    return lists


def _count(index: Any) -> int:
    """Set and return the rows of an index that only wraps others."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        index.ntotal = _count(index.index)
    elif isinstance(index, faiss.IndexRefine):
        index.ntotal = _count(index.base_index)
    return int(index.ntotal)


def write(faiss_index: Any, path: Path) -> None:
    """Write a FAISS index as one file.

    Through a file of Python's: FAISS closes its own without looking at the result, so that a disk
    that fills up at the last block leaves a shorter file and no error.
    """
    with path.open("wb") as file:
        out = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]
        faiss.write_index(faiss_index, out)


def read(path: Path, *, mapped: bool = False) -> Any:
    """Read the FAISS index that `write` wrote. FAISS trusts its input: check the file's digest first.

    `mapped`: vectors and lists stay in the file, where the kind of index allows it.

    Raises:
        IntegrityError: it is not such a file.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise IntegrityError(f"{path} is not a FAISS index", reason(error), FIX) from error
    if isinstance(index, faiss.IndexIDMap):
        raise IntegrityError(f"{path} numbers its vectors by ids of its own, not by position")
    return index


def require_k(k: object) -> None:
    """Refuse a number of results that cannot be one.

    Raises:
        UsageError: it is not a whole number from 1 up.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UsageError(f"k must be a whole number from 1 up, not {k!r}", None, "k=10")


def checked_queries(queries: npt.ArrayLike, dim: int, k: int) -> Float32:
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
