"""Indexes that were filled from one trained index and merged answer as one that was filled at once."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from reembed.index.search import SearchIndex

DIM = 16
FACTORIES = ("IVF8,Flat", "IVF8,SQ8", "PQ4x4fs,RFlat", "IVF8,PQ4x4fs,Refine(SQ8)", "IVF8,PQ8x4fsr",
             "OPQ4,IVF8,PQ4x4fs,RFlat", "IVF8_HNSW8,PQ4x4fs")  # fmt: skip


def filled(empty, vectors) -> SearchIndex:
    index = faiss.deserialize_index(empty)
    for part in vectors:
        index.add(part)
    return SearchIndex(index)


@pytest.mark.parametrize("factory", FACTORIES)
def test_merged_and_filled_at_once_answer_alike_whatever_the_lengths_of_lists(factory):
    """FAISS's own merge of codes in blocks ends the process here, after a few of these."""
    random = np.random.default_rng(0)
    trained = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    trained.train(random.standard_normal((10_000, DIM)).astype(np.float32))
    empty = faiss.serialize_index(trained)
    queries = random.standard_normal((20, DIM)).astype(np.float32)
    for _ in range(12):
        sizes = random.integers(1, 500, 4)
        vectors = [random.standard_normal((n, DIM)).astype(np.float32) for n in sizes]
        whole = filled(empty, vectors)
        merged, *parts = [filled(empty, [part]) for part in vectors]
        for part in parts:
            assert merged.merges
            merged = merged.merge(part)
        assert merged.rows == whole.rows == sizes.sum()
        for found, expected in zip(
            merged.nearest(queries, 10), whole.nearest(queries, 10), strict=True
        ):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("factory", ["HNSW8", "IVF8,RaBitQfs"])
def test_kinds_that_cannot_be_merged_say_so(factory):
    random = np.random.default_rng(0)
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(random.standard_normal((1_000, DIM)).astype(np.float32))
    assert not SearchIndex(index).merges
