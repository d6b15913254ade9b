"""Recall that many small shards measured one by one is not above that of the index that searches them together."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import unit

from reembed.index.cut import Blocks
from reembed.index.exact import EXACT_K, ExactSearch, recalls
from reembed.index.search import SearchIndex
from reembed.index.sharded import ShardedIndex
from reembed.index.tune import choose, ladder, measure
from reembed.index.types import RECALL_K, Float32, Int64

SHARDS, SHARD_ROWS, DIM = 20, 300, 32


@pytest.mark.parametrize("spread", [0.3, 100])
@pytest.mark.parametrize(
    ("factory", "target"),
    [
        ("IVF128,Flat", 0.2),
        ("IVF128,Flat", 0.9),
        ("IVF128,PQ16x4fs,Refine(SQ8)", 0.2),
        ("IVF32,PQ16x4fs,Refine(SQ8)", 0.8),
        ("PQ16x4fs,RFlat", 0.7),
    ],
)
def test_recall_of_small_shards_is_not_above_that_of_the_index_that_serves(
    factory: str, target: float, spread: float
) -> None:
    rng = np.random.default_rng(3)
    rows = SHARDS * SHARD_ROWS
    centers = rng.normal(size=(60, DIM))
    vectors = unit(centers[rng.integers(60, size=rows)] + spread * rng.normal(size=(rows, DIM)))
    queries = unit(vectors[:50] + rng.normal(size=(50, DIM)) / 20)
    trained = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    trained.train(vectors)
    shards, measured = [], []
    for part in np.split(vectors, SHARDS):
        filled = faiss.clone_index(trained)
        filled.add(part)
        shards.append(SearchIndex(filled))
        measured.append(measure(shards[-1], queries, exact(part, queries), rows))
    together = ShardedIndex(shards)
    tuned = choose(measured, target)
    together.operate(tuned.operating_point)
    found, by_score = together.nearest(queries, RECALL_K), together.scores_are_exact
    real = recalls(found, exact(vectors, queries), by_score=by_score).mean()
    assert real - 0.05 <= tuned.recalls.mean() <= real + 0.01


def exact(vectors: Float32, queries: Float32) -> tuple[Int64, Float32]:
    search = ExactSearch(queries, EXACT_K)
    search.add(np.arange(len(vectors)), vectors)
    return search.ids, search.scores


@given(
    shards=st.lists(st.lists(st.integers(0, 60), max_size=300), min_size=1, max_size=6),
    n=st.sampled_from([1, 10, 100, 400]),
)
def test_what_is_above_the_cut_is_among_the_best_of_all_shards(
    shards: list[list[int]], n: int
) -> None:
    ranks = np.array(ladder(1, n), np.int64)
    joined, every = None, np.empty(0)
    for codes in shards:
        best = sorted(codes, reverse=True)[:n]
        every = np.append(every, best)
        offered = np.full((1, n), -np.inf, np.float32)
        offered[0, : len(best)] = best
        blocks = Blocks.of(offered[:, ranks - 1], ranks, n)
        joined = blocks if joined is None else joined.joined(blocks, n)
    assert joined is not None
    cut = joined.cut(n).item()
    assert (every > cut).sum() <= n
    # A block is at most an eighth deeper than its rank.
    assert (every >= cut).sum() >= min(len(every), (n - len(shards)) / 1.125)
    if len(shards) == 1:
        assert cut == -np.inf


def test_joined_blocks_are_no_more_than_are_re_ranked_and_hold_nothing_else() -> None:
    ranks, rng, n = np.array(ladder(1, 40)), np.random.default_rng(0), 40
    made = [
        Blocks.of(-np.sort(-rng.random((30, len(ranks)), np.float32), axis=1), ranks, n)
        for _ in range(50)
    ]
    joined = made[0]
    for other in made[1:]:
        joined = joined.joined(other, n)
    assert joined.tops.shape == joined.sizes.shape
    assert joined.tops.shape[1] <= n + 1
    assert joined.tops.base is None
    assert joined.sizes.base is None
    assert joined.sizes.dtype == np.int32
