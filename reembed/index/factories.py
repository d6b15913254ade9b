"""What a factory string of FAISS means: its lists, its codes, and the kind of index that `auto` takes.

Does not import FAISS. N vectors of D dimensions.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

ROWS_PER_LIST = 64
LEAST_PER_LIST = 39
"""Below, k-means finds lists that few vectors are near to: FAISS's own limit (ClusteringParameters)."""
LEAST_TRAINED_ON = 65_536
TRAIN_BYTES = 16 * 2**30

_ON_GPU = re.compile(r"Flat|IVF\d+,(Flat|SQfp16|SQ8|PQ\d+(x8)?)")
_CODES = re.compile(
    r"(?P<first>Flat|SQ8|SQfp16|PQ(?P<m>\d+)(x(?P<bits>\d+))?(?P<fast>fs)?)"
    r"(,(?P<again>RFlat|Refine\((?P<refine>Flat|SQ8|SQfp16)\)))?"
)
_IVF = re.compile(r"IVF(?P<lists>\d+)(_HNSW(?P<links>\d+))?,(?P<rest>.*)")
_HNSW = re.compile(r"HNSW(?P<links>\d+)(,(?P<rest>Flat|SQ8|SQfp16))?")
_FINER_REFINE = {"Refine(SQ8)": "Refine(SQfp16)", "Refine(SQfp16)": "RFlat"}
_FINER = {"SQ8": "SQfp16", "SQfp16": "Flat"}
_BYTES = {"Flat": 4, "SQfp16": 2, "SQ8": 1}
"""Of each dimension."""


@dataclass(frozen=True)
class Kind:
    """A factory string, taken apart."""

    lists: int
    """0 without lists."""
    coarse_links: int
    """Links of each centroid in the graph that lists are found through; 0 without."""
    links: int
    """Links of each vector in a graph; 0 without."""
    codes: str
    """Flat, SQ8, SQfp16 or PQ."""
    pq_parts: int
    pq_bits: int
    is_fast_scan: bool
    refine: str
    """Flat, SQ8 or SQfp16; "" if results are not scored again."""


def kind_of(factory: str) -> Kind | None:
    """Return the parts of a factory string; None if it has others than those that this module knows."""
    rest, lists, coarse, links = factory, 0, 0, 0
    if ivf := _IVF.fullmatch(rest):
        lists, coarse, rest = int(ivf["lists"]), int(ivf["links"] or 0), ivf["rest"]
    elif graph := _HNSW.fullmatch(rest):
        links, rest = int(graph["links"]), graph["rest"] or "Flat"
    found = _CODES.fullmatch(rest)
    if found is None:
        return None
    parts = int(found["m"] or 0)
    refine = "Flat" if found["again"] == "RFlat" else found["refine"] or ""
    codes = "PQ" if parts else found["first"]
    bits = int(found["bits"] or 8)
    return Kind(lists, coarse, links, codes, parts, bits, bool(found["fast"]), refine)


def fast_scan_bytes(factory: str) -> int:
    """Return the bytes of one vector in lists of fast-scan codes, which FAISS cannot map; 0 for other kinds."""
    kind = kind_of(factory)
    if kind is None or not (kind.lists and kind.is_fast_scan):
        return 0
    return 8 + math.ceil(kind.pq_parts * kind.pq_bits / 8)


def code_bytes(codes: str, dim: int) -> int:
    """Return the bytes of one vector as Flat, SQfp16 or SQ8."""
    return _BYTES[codes] * dim


def lists_of(factory: str) -> int:
    """Return the number of lists that a factory string asks for; 0 without lists."""
    lists = re.search(r"IVF(\d+)", factory)
    return int(lists[1]) if lists else 0


def is_filled_on_gpu(factory: str, wanted: str) -> bool:
    """Return whether an index of this kind is filled on a GPU, not only trained; `wanted` is index.device."""
    kept = wanted == "cpu" or (wanted == "auto" and factory == "Flat")
    return not kept and bool(_ON_GPU.fullmatch(factory))


def choose_factory(rows: int, dim: int, *, gpu: bool) -> str:
    """Return the factory string for N vectors of D dimensions; `gpu`: to be served from a GPU.

    Up to 50k rows a full scan is as fast as anything. Above, lists by the FAISS guidelines
    (github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index): about 4 sqrt(N) to 1M,
    16 sqrt(N) to 10M, then 262144 found through HNSW, or as many as can be trained. 4-bit PQ with
    re-ranking is the fastest on CPUs, and needs two dimensions per code. Above 1M rows it re-ranks by one byte
    per dimension: a third of the bytes of float32, with a tenth fewer queries/s at recall .98. Measured on real
    texts and queries by bench/index_shards.py: docs/decisions/025.
    """
    if rows <= 50_000:
        return "Flat"
    lists, whole = 2 ** round(math.log2(4 * math.sqrt(rows))), "Flat"
    if rows > 1_000_000:
        lists, whole = 4 * lists, "SQ8"
    found_through = ""
    if rows > 10_000_000:
        lists, found_through = 262_144, "_HNSW32"
    while LEAST_PER_LIST * lists > most_sampled(rows, dim):
        lists //= 2
    coarse = f"IVF{lists}{found_through}"
    if gpu or dim % 2:
        return f"{coarse},{whole}"
    refine = "RFlat" if whole == "Flat" else f"Refine({whole})"
    return f"{coarse},PQ{dim // 2}x4fs,{refine}"


def finer(factory: str) -> str | None:
    """Return the kind of index that `auto` takes if this one misses its recall: the same lists, finer codes."""
    lists, _, codes = factory.partition(",")
    pq, _, whole = codes.rpartition(",")
    followed = _FINER_REFINE if pq else _FINER
    if not lists.startswith("IVF") or whole not in followed:
        return None
    return ",".join(filter(None, (lists, pq, followed[whole])))


def most_sampled(rows: int, dim: int) -> int:
    """Return how many vectors can be read to train on."""
    return min(rows, max(1, TRAIN_BYTES // (4 * dim)))


def rows_trained_on(factory: str, rows: int, dim: int) -> int:
    """Return how many vectors are read to train on: 64 a list, as far as memory allows."""
    wanted = max(LEAST_TRAINED_ON, ROWS_PER_LIST * lists_of(factory))
    return min(wanted, most_sampled(rows, dim))
