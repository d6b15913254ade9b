"""A search among some rows finds what exact search among them finds, whatever their share."""

from __future__ import annotations

from itertools import pairwise

import faiss
import numpy as np
import pyarrow as pa
import pytest

from reembed.index.search import SearchIndex
from reembed.index.segments import SegmentedIndex
from reembed.index.sharded import ShardedIndex
from reembed.index.spilled import spill

ROWS, DIM, K = 4_000, 16, 10
EXACT = ("Flat", "IVF16,Flat", "HNSW16", "IVF16,PQ8x4fs,RFlat", "IVF16_HNSW8,PQ8x4fs,RFlat")
QUANTISED = ("SQ8", "IVF16,SQ8", "HNSW16,SQ8", "IVF16,PQ8x4fs,Refine(SQ8)", "PCA16,IVF16,SQ8")
SHARES = {"one row": 1, "1 %": ROWS // 100, "50 %": ROWS // 2, "all": ROWS}


def vectors(rows, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((40, DIM))
    found = centres[rng.integers(40, size=rows)] + 0.6 * rng.standard_normal((rows, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = vectors(ROWS, 1), vectors(30, 2)


def filled(factory, parts):
    """One index of each part of the vectors, all with the same training."""
    trained = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    trained.train(VECTORS)
    made = []
    for part in parts:
        index = SearchIndex(faiss.clone_index(trained))
        index.faiss_index.add(part)
        index = SearchIndex(index.faiss_index)
        if index.lists[1]:
            index.operate({"nprobe": 6} | ({"k_factor": 10} if index.rescores else {}))
        made.append(index)
    return made


def opened(segments, tombstones=()):
    """Segments whose row ids are 7 more than their positions."""
    ids = pa.record_batch({"row_id": np.arange(ROWS) + 7, "doc_id": np.arange(ROWS)})
    return SegmentedIndex(segments, [ids], np.array(tombstones, np.int64))


def recall(index, chosen, exact_scores=None):
    """Mean recall of K against exact search among the chosen positions; what is found is checked to be of them."""
    among = index.among(chosen + 7, "not used")
    answer = among.answer(QUERIES, K)
    there = answer.positions >= 0
    assert np.isin(answer.positions[there], chosen).all()
    scores = QUERIES @ VECTORS[chosen].T
    best = chosen[np.argsort(-scores, axis=1)[:, :K]]
    assert (there.sum(axis=1) == min(K, len(chosen))).all()
    return (answer.positions[:, :, None] == best[:, None, :]).any(axis=2).sum() / best.size


def chosen(count):
    return np.sort(np.random.default_rng(3).permutation(ROWS)[:count])


@pytest.mark.parametrize("count", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("factory", [*EXACT, *QUANTISED])
def test_every_kind_of_index_finds_the_best_of_the_chosen_rows(factory, count):
    index = opened(filled(factory, [VECTORS]))
    whole = recall(index, np.arange(ROWS))
    least = 1.0 if factory == "Flat" else min(whole, 0.97)
    assert recall(index, chosen(count)) >= least


@pytest.mark.parametrize("factory", ["Flat", "IVF16,PQ8x4fs,RFlat", "IVF16,SQ8"])
@pytest.mark.parametrize("count", [1, 40, 2_000])
def test_shards_and_segments_with_tombstones_do_as_one_index(factory, count):
    cuts = [0, 1_003, 1_500, ROWS]
    parts = filled(factory, [VECTORS[a:b] for a, b in pairwise(cuts)])
    dead = np.arange(5, ROWS, 11)
    alive = np.setdiff1d(chosen(count), dead)
    alive = alive if len(alive) else np.array([1])
    for segments in (parts, [ShardedIndex(parts)]):
        index = opened(segments, dead)
        assert recall(index, alive) >= 0.97
        with_dead = index.among(np.union1d(alive, dead) + 7, "not used")
        assert with_dead.rows == len(alive)
        assert not np.isin(with_dead.answer(QUERIES, K).positions, dead).any()


def test_lists_in_a_file_take_a_selection(tmp_path):
    (index,) = filled("IVF16,PQ8x4fs,RFlat", [VECTORS])
    in_memory = opened([index]).among(chosen(400) + 7, "").answer(QUERIES, K)
    spill(index.faiss_index, tmp_path)
    in_file = opened([SearchIndex(index.faiss_index)]).among(chosen(400) + 7, "").answer(QUERIES, K)
    np.testing.assert_array_equal(in_memory.positions, in_file.positions)


def test_rows_that_lie_together_and_far_from_the_query_are_found():
    """A filter that is correlated with the vectors: all rows are of the few lists farthest from each query."""
    index = opened(filled("IVF16,Flat", [VECTORS]))
    for query in QUERIES[:10]:
        far = np.sort(np.argsort(VECTORS @ query)[: ROWS // 4])
        found = index.among(far + 7, "").answer(query[None], K)
        best = far[np.argsort(-(VECTORS[far] @ query))[:K]]
        assert set(found.positions[0]) == set(best)


def test_more_results_than_rows_are_all_of_the_rows():
    for factory in EXACT:
        found = opened(filled(factory, [VECTORS])).among(chosen(15) + 7, "").answer(QUERIES, 40)
        for row in found.positions:
            assert sorted(row[row >= 0]) == chosen(15).tolist()


def test_kinds_that_take_no_selection_say_so():
    assert opened(filled("PQ8x4fs,RFlat", [VECTORS])).among(chosen(40) + 7, "") is None
