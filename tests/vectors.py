"""Vectors of unit length, for tests of the index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reembed.config.settings import IndexConfig
from reembed.index.search import Float32, Int64

CPU = IndexConfig(device="cpu")


@dataclass(frozen=True)
class ArrayVectors:
    """Vectors in memory: row ids int64 [N], which are the document ids too, and vectors [N, D]."""

    row_ids: Int64
    vectors: Float32

    @property
    def rows(self) -> int:
        return len(self.row_ids)

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def sample(self, n: int, seed: int) -> Float32:
        chosen = np.random.default_rng(seed).permutation(self.rows)[:n]
        return self.vectors[np.sort(chosen)]

    def batches(self) -> Iterator[tuple[Int64, Float32]]:
        for start in range(0, self.rows, 65_536):
            piece = slice(start, start + 65_536)
            yield self.row_ids[piece], self.vectors[piece]

    def ids(self) -> Iterator[tuple[Int64, pa.Array]]:
        yield self.row_ids, pa.array(self.row_ids)


def unit(vectors: np.ndarray) -> Float32:
    rows: Float32 = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return rows


def random_source(rows: int, dim: int, seed: int = 0) -> ArrayVectors:
    rng = np.random.default_rng(seed)
    ids = rng.choice(2**62, size=rows, replace=False).astype(np.int64)
    return ArrayVectors(ids, unit(rng.normal(size=(rows, dim))))
