"""Build the FAISS index of one vector table: choose its kind, train it, fill it, tune it.

FAISS silently accepts lost rows, so they are counted after filling. Shapes: N vectors in the table,
D dimensions, Q queries, K results.
"""

from __future__ import annotations

import math
import re
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from reembed import faults
from reembed.config.settings import IndexConfig
from reembed.errors import IntegrityError, ReembedError, UsageError
from reembed.index.search import (
    RECALL_K,
    Float32,
    Float64,
    Int64,
    SearchIndex,
    VectorSource,
    ann_recall,
    check_vectors,
    checked_batches,
    exact_search,
    reason,
)

# Exact results kept per query beyond K, so that ties with the K-th are known by id.
EXACT_K = 4 * RECALL_K
TUNING_DOCUMENTS = 200
ROWS_PER_LIST = 64
TRAIN_BYTES = 16 * 2**30
_ON_GPU = re.compile(r"Flat|IVF\d+,(Flat|SQfp16|SQ8|PQ\d+(x8)?)")


@dataclass(frozen=True)
class Trained:
    """An index that learned the distribution of nearly the same vectors."""

    factory: str
    index: SearchIndex
    rows_since: int
    """Rows that were embedded since it was trained, including those of the index to build."""


@dataclass(frozen=True)
class Built:
    """A tuned index, its document ids [N] by position, and recalls [Q]: ann_recall@10 of each query."""

    index: SearchIndex
    doc_ids: pa.Array
    factory: str
    device: str
    operating_point: dict[str, int]
    recalls: Float64
    tuned_on: str
    build_seconds: float
    settings: IndexConfig = field(default_factory=IndexConfig)
    rows_since_training: int = 0
    """Rows that were embedded after it was trained: by catch-ups that filled it again."""


def gpu_available() -> bool:
    """Return whether FAISS can use a GPU here; builds for GPUs run on machines without one."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def choose_factory(rows: int, dim: int, *, gpu: bool) -> str:
    """Return the factory string for N vectors of D dimensions; `gpu`: to be served from a GPU.

    Up to 50k rows a full scan is as fast as anything. Above, lists by the FAISS guidelines
    (github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index): about 4 sqrt(N) to 1M,
    16 sqrt(N) to 10M, then 262144 found through HNSW. 4-bit PQ with exact re-ranking is the fastest
    on CPUs: 10.8k queries/s and core at .978 recall@10 against 1.1k for IVF-Flat (200k x 384
    clustered vectors, one thread); it needs two dimensions per code. Above 10M rows, one byte per
    dimension bounds the memory.
    """
    if rows <= 50_000:
        return "Flat"
    if rows > 10_000_000:
        return "IVF262144_HNSW32,SQ8"
    per_root, whole = 4, "Flat"
    if rows > 1_000_000:
        per_root, whole = 16, "SQfp16"
    lists = 2 ** round(math.log2(per_root * math.sqrt(rows)))
    if gpu or dim % 2:
        return f"IVF{lists},{whole}"
    return f"IVF{lists},PQ{dim // 2}x4fs,RFlat"


def build(
    source: VectorSource,
    config: IndexConfig,
    queries: Float32 | None,
    trained: Trained | None = None,
) -> Built:
    """Train, fill, check and tune an index over every row of `source`.

    Without queries [Q, D] it is tuned on random documents, which are easier than real queries.
    `trained` is emptied and filled again without training, unless another kind is due now.

    Raises:
        UsageError: the factory string is wrong, or does not fit the vectors.
        ReembedError: the config asks for a GPU and FAISS finds none.
        IntegrityError: rows are missing, repeated, not finite or of another dimension.
    """
    started = time.monotonic()
    if config.device == "gpu" and not gpu_available():
        raise ReembedError(
            "index.device is gpu, but FAISS finds no GPU here",
            "either this machine has none or the faiss-cpu package is installed",
            "reembed run --set index.device=auto",
        )
    if not source.rows:
        raise IntegrityError("the vector table has no rows to index")
    factory = config.factory
    if factory == "auto":
        # Only an explicit gpu changes the kind of index: auto gives the same one on every machine.
        factory = choose_factory(source.rows, source.dim, gpu=config.device == "gpu")
    if trained is not None and trained.factory != factory:
        trained = None
    queries, tuned_on = _tuning_queries(source, queries)
    # Before the long part, so that queries of another model stop it early.
    exact_ids, exact_scores = exact_search(source, queries, EXACT_K)
    index, device = _fill(_empty(factory, source.dim, trained), source, factory, config.device)
    doc_ids = _doc_ids(index, source)
    if config.nprobe is None:
        point, recalls = tune(index, queries, exact_ids, exact_scores, config.ann_recall)
    else:
        point = _point(index, config.nprobe, index.k_factors[0])
        index.operate(point)
        recalls = ann_recall(index, queries, exact_ids, exact_scores)
    seconds = time.monotonic() - started
    since = trained.rows_since if trained else 0
    return Built(index, doc_ids, factory, device, point, recalls, tuned_on, seconds, config, since)


def _tuning_queries(source: VectorSource, queries: Float32 | None) -> tuple[Float32, str]:
    """Return vectors to tune on, and whether they are queries or documents."""
    if queries is not None and len(queries):
        return queries, "queries"
    documents = source.sample(TUNING_DOCUMENTS, seed=1)
    check_vectors(documents, source.dim)
    return documents, "documents"


def tune(
    index: SearchIndex,
    queries: Float32,
    exact_ids: Int64,
    exact_scores: Float32,
    target: float,
    k: int = RECALL_K,
) -> tuple[dict[str, int], Float64]:
    """Return the cheapest operating point whose mean ann_recall@k reaches `target`, and its recalls [Q].

    The index is left at that point. If no point reaches the target, it is the most thorough one.
    """

    def measure(point: dict[str, int]) -> Float64:
        index.operate(point)
        return ann_recall(index, queries, exact_ids, exact_scores, k)

    def reaches(k_factor: int | None, value: int) -> bool:
        return bool(measure(_point(index, value, k_factor)).mean() >= target)

    _, most = index.knob or ("", 1)
    for k_factor in index.k_factors:
        value = smallest(partial(reaches, k_factor), most)
        if value is not None:
            break
    point = _point(index, value or most, k_factor)
    return point, measure(point)


def smallest(reaches: Callable[[int], bool], most: int) -> int | None:
    """Return the smallest of 1..most that reaches, by doubling and bisection; None if none does."""
    low, high = 0, 1
    while not reaches(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    between = range(low + 1, high)
    return low + 1 + bisect_left(between, True, key=reaches)


def _fill(index: Any, source: VectorSource, factory: str, wanted: str) -> tuple[SearchIndex, str]:
    """Return the trained and filled index, on the CPU in the end, and where it was built."""
    gpu = wanted != "cpu" and gpu_available()
    whole = gpu and bool(_ON_GPU.fullmatch(factory)) and (wanted == "gpu" or factory != "Flat")
    resources: Any = faiss.StandardGpuResources() if gpu else None
    if whole:
        index = faiss.index_cpu_to_gpu(resources, 0, index)
        _train(index, source, factory, None)
    else:
        _train(index, source, factory, resources)
    faults.point("index.after_train")
    row_ids = [np.empty(0, np.int64)]
    for ids, vectors in checked_batches(source):
        row_ids.append(ids)
        try:
            index.add(vectors)
        except RuntimeError as error:
            what = f"FAISS could not add {len(ids):,} vectors to {factory}"
            raise ReembedError(what, reason(error), "reembed run --set index.device=cpu") from error
    if whole:
        index = faiss.downcast_index(faiss.index_gpu_to_cpu(index))
    filled = SearchIndex(index, np.concatenate(row_ids))
    if whole:
        return filled, "gpu"
    if not gpu or factory == "Flat":
        return filled, "cpu"
    part = "its lists were trained on the GPU" if "IVF" in factory else "nothing ran there"
    return filled, f"cpu ({factory} cannot be on a GPU; {part})"


def _empty(factory: str, dim: int, trained: Trained | None) -> Any:
    """Return an index without vectors: the trained one with what it learned, or a new one."""
    if trained is not None:
        trained.index.faiss_index.reset()
        return trained.index.faiss_index
    # Positions are the ids: a map to other ids would take 50 bytes per vector.
    inner = re.sub(r"^(IDMap2?,)+", "", factory)
    try:
        return faiss.index_factory(dim, inner, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _does_not_fit(factory, f"{dim} dimensions", error) from error


def _train(index: Any, source: VectorSource, factory: str, resources: Any) -> None:
    """Train on a sample; with GPU resources (None without) the lists' k-means runs there."""
    if index.is_trained:
        return
    wanted = 65_536
    if lists := re.search(r"IVF(\d+)", factory):
        wanted = max(wanted, ROWS_PER_LIST * int(lists[1]))
    rows = min(wanted, max(1, TRAIN_BYTES // (4 * source.dim)))
    sample = np.ascontiguousarray(source.sample(rows, seed=0), dtype=np.float32)
    check_vectors(sample, source.dim)
    ivf: Any = None
    if resources is not None:
        ivf = faiss.try_extract_index_ivf(index)
    try:
        if ivf is not None:
            # Held in a name: FAISS keeps only a pointer to it.
            helper = faiss.index_cpu_to_gpu(resources, 0, faiss.IndexFlatIP(ivf.d))
            ivf.clustering_index = helper
        index.train(sample)
    except RuntimeError as error:
        raise _does_not_fit(factory, f"{source.rows:,} vectors", error) from error
    finally:
        if ivf is not None:
            ivf.clustering_index = None


def _doc_ids(index: SearchIndex, source: VectorSource) -> pa.Array:
    """Return the document ids [N] in the order of the index, once each row is in it exactly once."""
    row_ids = index.row_ids
    if len(row_ids) != source.rows or index.rows != source.rows:
        raise IntegrityError(f"the table has {source.rows:,} rows, but {len(row_ids):,} were read")
    repeated = len(row_ids) - len(np.unique(row_ids))
    if repeated:
        raise IntegrityError(f"{repeated:,} row ids appear more than once", fix="reembed verify")
    rows, names = zip(*source.ids(), strict=True)
    if not np.array_equal(np.concatenate(rows), row_ids):
        raise IntegrityError("the table gave its rows in another order the second time")
    together = pa.chunked_array(names)
    if pa.types.is_string(together.type):  # 32-bit offsets: one array of them holds 2 GiB
        together = together.cast(pa.large_string())
    return together.combine_chunks()


def _point(index: SearchIndex, value: int, k_factor: int | None) -> dict[str, int]:
    """The operating point with the index's knob at `value`, as far as it has one."""
    point: dict[str, int] = {}
    if index.knob:
        name, most = index.knob
        point[name] = min(value, most)
    if k_factor is not None:
        point["k_factor"] = k_factor
    return point


def _does_not_fit(factory: str, data: str, error: RuntimeError) -> UsageError:
    return UsageError(
        f"index.factory {factory!r} does not fit {data}",
        f"FAISS says: {reason(error)}",
        "reembed run --set index.factory=auto",
    )
