"""Rows are searched by the vectors that the table has for them: ids of other rows are noticed."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from reembed.index.placed import SAMPLE, misplaced
from reembed.index.search import SearchIndex

ROWS, DIM = 3_000, 32
KINDS = {
    "Flat": ({}, 1.0),
    "SQ8": ({}, 0.97),
    "HNSW16": ({"ef_search": 32}, 0.95),
    "IVF16,Flat": ({"nprobe": 1}, 0.6),
    "IVF16,PQ8": ({"nprobe": 4}, 0.5),
    "IVF16,PQ16x4fs,Refine(SQ8)": ({"nprobe": 4, "k_factor": 10}, 0.9),
}
"""Operating point, and a recall that is measured there."""


def vectors_of(*, unit: bool = True, clusters: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(clusters, DIM))
    made = centers[rng.integers(0, clusters, ROWS)] + 0.4 * rng.normal(size=(ROWS, DIM))
    lengths = np.linalg.norm(made, axis=1, keepdims=True) if unit else rng.uniform(0.2, 1, (1,))
    return (made / lengths).astype(np.float32)


def filled(kind: str, vectors: np.ndarray) -> SearchIndex:
    index = faiss.index_factory(DIM, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    found = SearchIndex(index)
    found.operate(KINDS[kind][0])
    return found


def count(kind: str, stored: np.ndarray, row_ids: np.ndarray, places=None) -> int:
    """Misplaced rows of an index that was filled with `stored`, in a table whose row n has stored[n]."""
    there = np.arange(ROWS) if places is None else places
    index = filled(kind, stored)
    return len(misplaced(index, there, row_ids, lambda rows: stored[rows], KINDS[kind][1]))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_other_rows_are_noticed_and_right_ones_pass(kind):
    vectors = vectors_of()
    right = np.arange(ROWS)
    assert count(kind, vectors, right) == 0
    assert count(kind, vectors, right[::-1].copy()) > SAMPLE // 2
    assert count(kind, vectors, np.roll(right, 1)) > SAMPLE // 2


def test_a_third_of_the_rows_is_enough():
    order = np.arange(ROWS)
    order[: ROWS // 3] = order[: ROWS // 3][::-1].copy()
    assert count("SQ8", vectors_of(), order) > SAMPLE // 5


def test_equal_texts_are_no_fault():
    same = np.repeat(vectors_of()[: ROWS // 30], 30, axis=0)
    assert count("Flat", same, np.arange(ROWS)) == 0


def test_longer_vectors_may_score_higher_than_the_row_itself():
    assert count("Flat", vectors_of(unit=False), np.arange(ROWS)) == 0
    lengths = np.random.default_rng(1).uniform(0.1, 3, (ROWS, 1)).astype(np.float32)
    assert count("Flat", vectors_of() * lengths, np.arange(ROWS)) == 0


def test_rows_that_no_search_finds_are_not_looked_at():
    order = np.arange(ROWS)
    order[:100] = order[:100][::-1].copy()
    assert count("Flat", vectors_of(), order, places=np.arange(100, ROWS)) == 0
    assert count("Flat", vectors_of(), order, places=np.arange(100)) > SAMPLE // 2
    assert count("Flat", vectors_of(), order, places=np.arange(0)) == 0


@pytest.mark.parametrize(("wrong", "recall"), [(19, 0.9), (21, 0.9), (1, 1.0), (2, 1.0)])
def test_as_many_misses_as_recall_explains_are_no_fault_and_more_are_all_named(wrong, recall):
    """Of 100 at .9: 10, three standard deviations of 3, and one."""
    vectors = np.eye(SAMPLE, dtype=np.float32)
    index = faiss.IndexFlatIP(SAMPLE)
    index.add(vectors)
    row_ids, last = np.arange(SAMPLE), np.arange(SAMPLE - wrong, SAMPLE)
    row_ids[last] = (
        np.roll(last, 1) if wrong > 1 else 50
    )  # among equal scores FAISS finds the first ones
    found = misplaced(
        SearchIndex(index), np.arange(SAMPLE), row_ids, lambda rows: vectors[rows], recall
    )
    assert sorted(found) == ([] if wrong in (1, 19) else last.tolist()), "every row was searched"
