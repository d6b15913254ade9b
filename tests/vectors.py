"""Vectors of unit length, and indexes of them, for tests of the index."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reembed.catalog.index_manifest import IndexManifest, Segment
from reembed.config.settings import IndexConfig
from reembed.index import build as steps
from reembed.index import files
from reembed.index.exact import Batch
from reembed.index.segments import SegmentedIndex
from reembed.index.types import Float32, Int64
from reembed.store.storage import Storage

CPU = IndexConfig(device="cpu")
PATH = "indexes/r1"
_runs = itertools.count()
WHERE: dict[str, Any] = {"space": "3fa91c07", "table": "tables/x.lance", "table_version": 4}


@dataclass(frozen=True)
class ArrayVectors:
    """Vectors in memory, in fragments of equal size: row ids int64 [N], which are the document ids too, and [N, D]."""

    row_ids: Int64
    vectors: Float32
    fragment_rows: int = 65_536

    @property
    def rows(self) -> int:
        return len(self.row_ids)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def fragments(self) -> list[tuple[int, int]]:
        starts = range(0, self.rows, self.fragment_rows)
        return [
            (3 * n, len(self.row_ids[s : s + self.fragment_rows])) for n, s in enumerate(starts)
        ]

    def sample(self, n: int, seed: int) -> Float32:
        chosen = np.random.default_rng(seed).permutation(self.rows)[:n]
        return self.vectors[np.sort(chosen)]

    def sample_ranges(self, n: int, seed: int) -> Float32:
        return self.sample(n, seed)

    def batches(self, fragments: Sequence[int] | None = None) -> Iterator[Batch]:
        for fragment, rows in self.fragments():
            if fragments is None or fragment in fragments:
                start = fragment // 3 * self.fragment_rows
                piece = slice(start, start + rows)
                yield self.row_ids[piece], pa.array(self.row_ids[piece]), self.vectors[piece]


def unit(vectors: np.ndarray) -> Float32:
    rows: Float32 = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return rows


def random_source(rows: int, dim: int, seed: int = 0) -> ArrayVectors:
    rng = np.random.default_rng(seed)
    ids = rng.choice(2**62, size=rows, replace=False).astype(np.int64)
    return ArrayVectors(ids, unit(rng.normal(size=(rows, dim))))


@dataclass(frozen=True)
class Built:
    """An index that was built, saved and loaded."""

    manifest: IndexManifest
    index: SegmentedIndex

    def operate(self, point: dict[str, int]) -> None:
        """Set the operating point of every segment."""
        for segment in self.index.segments:
            segment.operate(point)


def build(
    source: Any,
    settings: IndexConfig,
    queries: Float32 | None = None,
    trained: steps.Trained | None = None,
    storage: Storage | None = None,
) -> Built:
    """Build the index of `source` step by step, and load it; in a folder that is removed unless there is a storage."""
    with tempfile.TemporaryDirectory() as folder:
        storage = storage or Storage.open(Path(folder))
        work = steps.Build(
            storage, PATH, f"runs/r{next(_runs)}/index", source, settings, (), trained
        )
        prepared = steps.prepare(work, queries)
        for number in range(len(prepared.shards)):
            steps.fill_shard(work, prepared, number)
        manifest = steps.finish(work, prepared, **WHERE)
        return Built(manifest, files.load(storage, PATH, manifest))


def save(
    storage: Storage,
    faiss_index: Any,
    doc_ids: pa.Array,
    point: dict[str, int] | None = None,
    recall: float = 1.0,
    path: str = PATH,
    where: dict[str, Any] = WHERE,
) -> IndexManifest:
    """Save a FAISS index as one segment; row ids are positions times three."""
    vectors = files.put_index(storage, path, faiss_index)
    ids = files.put_ids(storage, path, 3 * np.arange(len(doc_ids)), doc_ids)
    segment = Segment(
        "base", vectors, vectors, ids, faiss_index.ntotal, "a test's", point or {}, "cpu", "1", 0.1, 0
    )  # fmt: skip
    manifest = IndexManifest(
        segments=(segment,), tombstones=None, metric="inner_product", dim=faiss_index.d,
        ann_recall_at_10=recall, ann_recall_lower=recall, tuned_on="documents", num_queries=20,
        settings=CPU, **where,
    )  # fmt: skip
    return files.put_manifest(storage, path, manifest)
