"""Indexes that were filled from one trained index answer together as one that was filled at once."""

from __future__ import annotations

from itertools import islice

import faiss
import numpy as np
import pytest

from reembed.index.search import SearchIndex
from reembed.index.sharded import ShardedIndex
from reembed.index.spilled import spill

DIM = 16
FACTORIES = (
    "Flat",
    "SQ8",
    "IVF8,Flat",
    "IVF8,SQ8",
    "PCA8,IVF8,SQfp16",
    "OPQ4,IVF8,PQ4",
    "IVF8_HNSW8,SQ8",
)
SCORED_TWICE = ("PQ4x4fs,RFlat", "IVF8,PQ4x4fs,Refine(SQ8)", "IVF8,PQ4x4fs,Refine(SQfp16)", "OPQ4,IVF8,PQ4x4fs,RFlat",
                "IVF8_HNSW8,PQ4x4fs,RFlat", "IVF8,SQ8,RFlat", "IVF8,RaBitQfs,Refine(SQ8)")  # fmt: skip


def filled(empty, vectors) -> SearchIndex:
    index = faiss.deserialize_index(empty)
    for part in vectors:
        index.add(part)
    return SearchIndex(index)


def cases(factory):
    """Shards of random lengths searched together, one index with all of their vectors, and queries."""
    random = np.random.default_rng(0)
    trained = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    trained.train(random.standard_normal((4_000, DIM)).astype(np.float32))
    empty = faiss.serialize_index(trained)
    queries = random.standard_normal((20, DIM)).astype(np.float32)
    for _ in range(5):
        sizes = random.integers(1, 500, 4)
        vectors = [random.standard_normal((n, DIM)).astype(np.float32) for n in sizes]
        whole = filled(empty, vectors)
        together = ShardedIndex([filled(empty, [part]) for part in vectors])
        if "IVF" in factory:
            for index in (whole, together):
                index.operate({"nprobe": 3})
        assert together.rows == whole.rows == sizes.sum()
        yield together, whole, queries


@pytest.mark.parametrize("factory", FACTORIES)
def test_shards_and_one_index_filled_at_once_answer_alike(factory):
    for together, whole, queries in cases(factory):
        found, scores = together.nearest(queries, 10)
        expected, expected_scores = whole.nearest(queries, 10)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
        if "PQ" not in factory:  # many vectors have the same code
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("factory", SCORED_TWICE)
def test_shards_have_the_candidates_of_one_index_and_re_rank_them_alike(factory):
    """Candidates may differ only where the last ones have the same score by their codes."""
    for together, whole, queries in cases(factory):
        for k_factor in (1, 4):
            for index in (whole, together):
                index.operate({"k_factor": k_factor})
            most = 10 * k_factor
            found, scores = together.candidates(queries, most, whole.lists[0])
            expected, expected_scores = whole.candidates(
                queries, most, whole.lists_near(queries, whole.lists[0])
            )
            np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
            sure = scores > scores[:, -1:]
            for mine, theirs, above in zip(found, expected, sure, strict=True):
                assert set(mine[above]) <= set(theirs)
            np.testing.assert_allclose(
                together.rescored(queries, expected), rescored(whole, queries, expected), atol=1e-5
            )
            best, best_scores = together.nearest(queries, 10)
            assert all(set(b) <= set(f) for b, f in zip(best, found, strict=True))
            assert (np.diff(best_scores, axis=1) <= 0).all()
            again = together.rescored(queries, best)
            np.testing.assert_allclose(best_scores, again, rtol=1e-5)


def rescored(whole: SearchIndex, queries, positions):
    return np.where(positions < 0, -np.inf, whole.rescored(queries, positions))


@pytest.mark.parametrize("factory", [*FACTORIES, *SCORED_TWICE])
def test_a_shard_searched_in_two_steps_finds_what_faiss_finds_in_one(factory):
    for _, whole, queries in cases(factory):
        together = ShardedIndex([whole])
        np.testing.assert_allclose(
            together.nearest(queries, 10)[1], whole.nearest(queries, 10)[1], atol=1e-5
        )


def test_more_results_than_rows_end_in_minus_one():
    for together, _, queries in cases("IVF8,PQ4x4fs,RFlat"):
        most = together.rows + 10
        found, scores = together.nearest(queries, most)
        assert (found[:, -1] == -1).all()
        np.testing.assert_array_equal(scores == -np.inf, found == -1)
        for row in found:
            there = row[row >= 0].tolist()
            assert len(there) == len(set(there))


@pytest.mark.parametrize("factory", [f for f in (*FACTORIES, *SCORED_TWICE) if "IVF" in f])
def test_a_search_that_looks_into_too_few_lists_looks_into_more_until_it_has_k_rows(
    factory, tmp_path
):
    for together, whole, queries in islice(cases(factory), 2):
        spilled = SearchIndex(faiss.clone_index(whole.faiss_index))
        spill(spilled.faiss_index, tmp_path)
        for index in (whole, together, SearchIndex(spilled.faiss_index)):
            index.operate({"nprobe": 1})
            for k in (1, whole.rows // 2, whole.rows, whole.rows + 10):
                found, scores = index.nearest(queries, k)
                there = (found >= 0).sum(axis=1)
                # FAISS's fast scan leaves out a vector whose codes give the lowest score there is.
                assert there.min() >= min(k, whole.rows - 1 * ("fs" in factory))
                assert there.max() <= min(k, whole.rows)
                assert (np.isneginf(scores) == (found < 0)).all()
                for row, score, n in zip(found, scores, there, strict=True):
                    assert len(set(row[:n])) == n
                    assert (np.diff(score[:n]) <= 1e-6).all()
            assert whole.lists[0] == 1, "the operating point stays"
