"""Vectors of unit length, for tests of the index."""

from __future__ import annotations

import numpy as np

from reembed.config.settings import IndexConfig
from reembed.index.search import ArrayVectors, Float32

CPU = IndexConfig(device="cpu")


def unit(vectors: np.ndarray) -> Float32:
    rows: Float32 = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return rows


def random_source(rows: int, dim: int, seed: int = 0) -> ArrayVectors:
    rng = np.random.default_rng(seed)
    ids = rng.choice(2**62, size=rows, replace=False).astype(np.int64)
    return ArrayVectors(ids, unit(rng.normal(size=(rows, dim))))
