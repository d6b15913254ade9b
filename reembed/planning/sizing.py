"""How many bytes an index takes, and how much memory each task needs, before anything is built.

The formulas of docs/sizing.md, which a test evaluates. Pure: nothing is read, and nothing is measured here; the
constants are in `planning.measured`. N vectors of D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reembed.index.factories import Kind, code_bytes, kind_of, rows_trained_on
from reembed.planning import measured
from reembed.table.vector_model import Kind as LanceKind

_BLOCK = 32
"""Vectors of a block of fast-scan codes: the last one of a list is half empty."""


def bytes_per_vector(kind: Kind, dim: int) -> float:
    """Return what one more vector adds to an index file."""
    total = 8.0 if kind.lists else 0.0  # its position
    if kind.links:
        total += _graph_bytes(kind.links)
    if kind.codes == "PQ":
        total += _pq_bytes(kind)
    else:
        total += code_bytes(kind.codes, dim)
    if kind.refine:
        total += code_bytes(kind.refine, dim)
    return total


def bytes_of_trained(kind: Kind, dim: int) -> int:
    """Return what each file holds beside its vectors: centroids, codebooks, and the ends of lists."""
    total = 4 * dim * kind.lists + 8 * kind.lists
    if kind.coarse_links:
        total += math.ceil(_graph_bytes(kind.coarse_links) * kind.lists)
    if kind.codes == "PQ":
        total += 4 * dim * 2**kind.pq_bits
    if kind.is_fast_scan:
        total += kind.lists * _BLOCK // 2 * _pq_bytes(kind)
    return total + 8 * dim * [kind.codes, kind.refine].count("SQ8")


def _pq_bytes(kind: Kind) -> int:
    parts = kind.pq_parts + kind.pq_parts % 2 if kind.is_fast_scan else kind.pq_parts
    return math.ceil(parts * kind.pq_bits / 8)


def _graph_bytes(links: int) -> float:
    """Of one vector: two links a neighbour at the bottom, a layer in `links` vectors above it, and where they are."""
    return 4 * (2 * links + links / max(1, links - 1)) + 12


def _fill(kind: Kind, rows: int, dim: int) -> int:
    """Return the memory of a task that fills a shard, beside what was trained."""
    lists = 0.0
    if kind.lists:
        lists = 8 + (_pq_bytes(kind) if kind.codes == "PQ" else code_bytes(kind.codes, dim))
    more = (measured.LISTS_RATIO - 1) * lists + measured.ID_BYTES
    return math.ceil(rows * (bytes_per_vector(kind, dim) + more)) + measured.FILL_TASK_BYTES


@dataclass(frozen=True)
class IndexSize:
    """Bytes of an index, and the most memory that a process needs for it."""

    factory: str
    rows: int
    dim: int
    shards: int
    bytes: int
    """Of all files."""
    shard_bytes: int
    """Of the largest file."""
    sample: int
    """Vectors that are read to train on."""
    train: int
    """Memory of the task that trains it."""
    fill: int
    """Memory of the task that fills the largest shard, and tunes it."""
    serve: int
    """Memory of a process that serves it from memory: its own, and pages of the mapped files."""
    refresh: int
    """The same while it is replaced by one that was built again: codes in blocks are held twice."""

    @property
    def largest_task(self) -> int:
        """Memory of the largest task of a build."""
        return max(self.train, self.fill)


def size_of(factory: str, rows: int, dim: int, shard_rows: int) -> IndexSize | None:
    """Return the sizes of an index; None if its factory string has parts whose size is not known.

    The string is one of FAISS, or a name of `table.vector_model.Kind`.
    """
    in_lance = LanceKind.named(factory)
    if in_lance is not None:
        return _size_in_lance(in_lance, rows, dim, shard_rows)
    kind = kind_of(factory)
    if kind is None:
        return None
    shards = max(1, math.ceil(rows / shard_rows))
    in_shard = math.ceil(rows / shards)
    each, trained = bytes_per_vector(kind, dim), bytes_of_trained(kind, dim)
    shard_bytes = math.ceil(in_shard * each) + trained
    whole = math.ceil(rows * each) + shards * trained
    blocks = rows * (8 + _pq_bytes(kind)) if kind.is_fast_scan else 0
    sample = rows_trained_on(factory, rows, dim)
    return IndexSize(
        factory=factory,
        rows=rows,
        dim=dim,
        shards=shards,
        bytes=whole,
        shard_bytes=shard_bytes,
        sample=sample,
        train=math.ceil(measured.TRAIN_RATIO * (4 * dim * sample + trained)) + measured.TASK_BYTES,
        fill=_fill(kind, in_shard, dim) + trained,
        serve=whole + measured.SERVE_BYTES,
        refresh=whole + blocks + measured.SERVE_BYTES,
    )


def _size_in_lance(kind: LanceKind, rows: int, dim: int, shard_rows: int) -> IndexSize:
    """A file is a segment; ids lie in the table."""
    shards = max(1, math.ceil(rows / shard_rows))
    in_shard = math.ceil(rows / shards)
    each, trained = 8 + kind.code_bytes(dim), kind.bytes_of_model(dim)
    whole = rows * each + shards * trained
    sample = kind.rows_trained_on(rows, dim)
    read = measured.LANCE_TRAIN_RATIO * 4 * dim * sample
    filled = measured.LANCE_RATIOS[kind.codes] * in_shard * each
    filled += measured.LANCE_MODEL_RATIO * trained
    serve = measured.SERVE_BYTES + min(whole, measured.LANCE_CACHE_BYTES)
    return IndexSize(
        factory=kind.name,
        rows=rows,
        dim=dim,
        shards=shards,
        bytes=whole,
        shard_bytes=in_shard * each + trained,
        sample=sample,
        train=math.ceil(read) + measured.TASK_BYTES,
        fill=math.ceil(filled) + measured.TASK_BYTES,
        serve=serve,
        refresh=serve,
    )
