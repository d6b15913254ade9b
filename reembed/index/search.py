"""Search, write and read FAISS indexes.

FAISS numbers vectors by position, in the order they were added. Scores are inner products: vectors have
unit length, or the model says its similarity is the dot product.

Shapes: N vectors in the index, D dimensions, Q queries, K results.
"""

from __future__ import annotations

import re
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from reembed.catalog.index_manifest import FIX
from reembed.errors import IntegrityError
from reembed.index.queries import checked_queries
from reembed.index.selection import Mask, Selection, Selector
from reembed.index.types import RECALL_K, Float32, Int64, Lists, Setting
from reembed.index.wider import best, is_full, nearest_selected, until_filled

# Candidates re-scored exactly per result asked for; a larger one only where recall needs it.
K_FACTORS = (10, 40, 160)
_GRAPH_SHARE = 0.1
"""Share of the rows below which a graph leads to too few of them: they are all scored."""


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
        self._transforms: Any = None
        inner: Any = faiss.downcast_index(faiss_index)
        base = inner
        if isinstance(inner, faiss.IndexRefine):
            self._refine, self.k_factors = inner, K_FACTORS
            base = faiss.downcast_index(inner.base_index)
        self._base = base
        if isinstance(base, faiss.IndexPreTransform):
            self._transforms = base.chain
        if isinstance(base, faiss.IndexHNSW):
            self._hnsw = base
            self.knob = "ef_search", max(RECALL_K, min(self.rows, 4096))
        if self._ivf is not None:
            self.knob = "nprobe", int(self._ivf.nlist)
        exact = (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat, faiss.IndexRefineFlat)
        self.scores_are_exact = isinstance(inner, exact)
        """Whether scores are inner products of the vectors as they were given."""
        by_place = (faiss.IndexFlat, faiss.IndexScalarQuantizer)
        self.selects = bool(self._ivf or self._hnsw) or isinstance(base, by_place)
        """Whether a search can be limited to a selection."""

    def select(self, mask: Mask) -> Selection:
        """Return the positions that are True in mask [N], as `nearest` takes them."""
        return Selection(mask, [self.rows])

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

    def nearest(
        self, queries: npt.ArrayLike, k: int, only: Selection | None = None
    ) -> tuple[Int64, Float32]:
        """Return positions [Q, K] and scores [Q, K], best first; -1 and -inf where rows ran out.

        `only`: the rows that may be found, if the index `selects`.

        Raises:
            UsageError: k is not a whole number from 1 up.
            SpaceMismatch: the queries have another dimension.
            EncoderError: a query holds NaN or infinity.
        """
        checked = checked_queries(queries, self.dim, k)
        if only is not None:
            return nearest_selected(self, checked, int(k), only)
        positions, scores = _searched(self.faiss_index, checked, int(k))
        if is_full(positions):
            return positions, scores
        scores[positions < 0] = -np.inf
        search = partial(self.nearest_in_lists, k=int(k))
        return until_filled((positions, scores), search, checked, self.rows, self.lists)

    def at_operating_point(self, queries: Float32, k: int) -> tuple[Int64, Float32]:
        """Return positions [Q, K] and scores [Q, K], best first, from no more lists than the operating point says.

        -1 and -inf where these have fewer than k rows. For one shard of several: what all have together is enough.
        """
        scores, positions = self.faiss_index.search(queries, k)
        if not is_full(positions):
            scores[positions < 0] = -np.inf
        return positions, scores

    def nearest_in_lists(
        self, queries: Float32, nprobe: int, k: int, only: Selection | None = None
    ) -> tuple[Int64, Float32]:
        """Return positions [Q, K] and scores [Q, K] from so many lists, all rows of an index without lists."""
        lists = self.lists_near(queries, nprobe)
        selector = None if only is None else only.selectors[0]
        positions, scores = self.candidates(queries, self.num_candidates(k), lists, selector)
        if not self.rescores:
            return positions, scores
        return best(
            positions, np.where(positions < 0, -np.inf, self.rescored(queries, positions)), k
        )

    @property
    def lists(self) -> tuple[int, int]:
        """How many lists a search looks into, and how many there are."""
        return (0, 0) if self._ivf is None else (int(self._ivf.nprobe), int(self._ivf.nlist))

    @property
    def setting(self) -> Setting | None:
        """The setting that trades speed for recall, as it is now; None for a full scan."""
        if self.knob is None:
            return None
        name, most = self.knob
        if name == "nprobe":
            return Setting(name, self.lists[0], 1, most)
        return Setting(name, int(self._hnsw.hnsw.efSearch), min(RECALL_K, most), most)

    def lists_near(self, queries: Float32, nprobe: int) -> Lists | None:
        """Return the `nprobe` lists that are nearest to queries [Q, D]; None if the index has no lists."""
        if self._ivf is None:
            return None
        for number in range(self._transforms.size() if self._transforms else 0):
            queries = self._transforms.at(number).apply(queries)
        scores, lists = self._ivf.quantizer.search(queries, nprobe)
        return Lists(queries, lists, scores)

    def num_candidates(self, k: int) -> int:
        """Return how many candidates are re-ranked for k results; k without a re-ranking stage."""
        return k if self._refine is None else int(k * self._refine.k_factor)

    def candidates(
        self, queries: Float32, n: int, lists: Lists | None, selector: Selector | None = None
    ) -> tuple[Int64, Float32]:
        """Return positions [Q, n] and scores [Q, n] of the best, not re-ranked; -1 and -inf where rows ran out."""
        if lists is not None:
            positions, scores = self._in_lists(lists, n, selector)
        elif selector is None:
            scores, positions = self._base.search(queries, n)
        else:
            scores, positions = self._selected(queries, n, selector)
        scores[positions < 0] = -np.inf
        return positions, scores

    def _selected(self, queries: Float32, n: int, selector: Selector) -> tuple[Float32, Int64]:
        """Search without lists. FAISS walks a graph over all rows and keeps those that are selected."""
        base = self._base
        if self._hnsw is not None and selector.share >= _GRAPH_SHARE:
            effort = min(self.rows, ceil(self._hnsw.hnsw.efSearch / selector.share))
            params = faiss.SearchParametersHNSW(efSearch=effort, sel=selector.faiss)  # type: ignore[attr-defined]
            scores, positions = base.search(queries, n, params=params)
            if (positions >= 0).sum(axis=1).min(initial=n) >= min(n, selector.count):
                return scores, positions
        if self._hnsw is not None:
            base = faiss.downcast_index(self._hnsw.storage)
        params = faiss.SearchParameters(sel=selector.faiss)  # type: ignore[call-arg]
        found: tuple[Float32, Int64] = base.search(queries, n, params=params)
        return found

    def _in_lists(self, lists: Lists, n: int, selector: Selector | None) -> tuple[Int64, Float32]:
        """FAISS's Python method searches only as many lists as the operating point says."""
        asked, nprobe = lists.numbers.shape
        positions, scores = np.empty((asked, n), np.int64), np.empty((asked, n), np.float32)
        given = [np.ascontiguousarray(a) for a in (lists.queries, lists.numbers, lists.scores)]
        x, numbers, near, to, at = map(faiss.swig_ptr, (*given, scores, positions))
        kept = None if selector is None else selector.faiss
        params = faiss.SearchParametersIVF(nprobe=nprobe, sel=kept)  # type: ignore[call-arg]
        self._ivf.search_preassigned_c(asked, x, n, numbers, near, to, at, False, params)
        return positions, scores

    @property
    def rescores(self) -> bool:
        """Whether it has a re-ranking stage."""
        return self._refine is not None

    def rescored(self, queries: Float32, positions: Int64) -> Float32:
        """Return the scores [Q, C] of positions [Q, C] by the re-ranking stage; any number at -1."""
        stage: Any = faiss.downcast_index(self._refine.refine_index)
        scores = np.empty(positions.shape, np.float32)
        if isinstance(stage, faiss.IndexFlat):
            x, to, at = [faiss.swig_ptr(array) for array in (queries, scores, positions)]
            stage.compute_distance_subset(len(queries), x, positions.shape[1], to, at)  # type: ignore[attr-defined]
            return scores
        held = faiss.rev_swig_ptr(stage.codes.data(), stage.ntotal * stage.code_size)
        codes = held.reshape(stage.ntotal, stage.code_size)
        for query, row, out in zip(queries, positions, scores, strict=True):
            there = row >= 0
            out[there] = stage.sa_decode(codes[row[there]]) @ query
        return scores

    @property
    def is_graph(self) -> bool:
        """Whether its vectors are found through a graph, which other shards know nothing of."""
        return self._hnsw is not None


def _searched(index: Any, queries: Float32, k: int) -> tuple[Int64, Float32]:
    """Return positions [Q, K] and scores [Q, K] of contiguous queries [Q, D].

    The same as FAISS's Python method `search`, which checks and converts once more what was checked: of a single
    query of 50 microseconds that takes two.
    """
    positions, scores = (
        np.empty((len(queries), k), np.int64),
        np.empty((len(queries), k), np.float32),
    )
    x, to, at = faiss.swig_ptr(queries), faiss.swig_ptr(scores), faiss.swig_ptr(positions)
    index.search_c(len(queries), x, k, to, at)
    return positions, scores


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


def reason(error: RuntimeError) -> str:
    """Return the message of FAISS without the C++ signature and file before it."""
    return re.sub(r"^Error in .*?\.(cpp|h):\d+: ", "", str(error), flags=re.DOTALL).strip()
