"""What an index finds at other values of its setting, which is afterwards as it was."""

from __future__ import annotations

import faiss
import numpy as np
import pyarrow as pa
import pytest
from vectors import ArrayVectors

from reembed.errors import SpaceMismatch
from reembed.index.curve import curve
from reembed.index.exact import ann_recall, exact_search
from reembed.index.search import SearchIndex
from reembed.index.segments import SegmentedIndex
from reembed.index.sharded import ShardedIndex
from reembed.index.types import Float32, Int64

ROWS, DIM = 3_000, 16


def index_of(
    factory: str, shards: int = 1
) -> tuple[SegmentedIndex, Float32, tuple[Int64, Float32]]:
    """An index of vectors, queries, and their true best."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    queries = rng.normal(size=(40, DIM)).astype(np.float32)
    trained = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    trained.train(vectors)
    parts = []
    for some in np.array_split(vectors, shards):
        part = faiss.clone_index(trained)
        part.add(some)
        parts.append(SearchIndex(part))
    row_ids = np.arange(ROWS)
    names = pa.record_batch({"row_id": pa.array(row_ids), "doc_id": pa.array(row_ids)})
    whole = ShardedIndex(parts) if shards > 1 else parts[0]
    exact = exact_search(ArrayVectors(row_ids, vectors), queries, 40)
    return SegmentedIndex([whole], [names]), queries, exact


@pytest.mark.parametrize(
    ("factory", "shards", "point"),
    [("IVF32,Flat", 1, {"nprobe": 3}), ("IVF32,Flat", 3, {"nprobe": 3}), ("HNSW8", 1, {"ef_search": 20})],
)  # fmt: skip
def test_a_curve_is_what_searches_at_each_value_find(factory, shards, point):
    index, queries, exact = index_of(factory, shards)
    (segment,) = index.segments
    segment.operate(point)
    ((name, value),) = point.items()
    before = index.search(queries, 10)
    found = curve(index, queries, exact, 60)
    assert found is not None
    setting, points = found
    assert (setting.name, setting.value) == (name, value)
    assert [p.value for p in points] == sorted(p.value for p in points)
    assert value in [p.value for p in points]
    assert points[-1].recall > 0.99 > points[0].recall
    for p in points:
        segment.operate({name: p.value})
        assert p.recall == pytest.approx(ann_recall(index, queries, *exact).mean())
    segment.operate(point)
    for ours, theirs in zip(before, index.search(queries, 10), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_setting_is_back_after_a_curve_and_after_an_error():
    index, queries, exact = index_of("IVF32,Flat")
    index.segments[0].operate({"nprobe": 5})
    curve(index, queries, exact, 60)
    assert index.setting is not None
    assert index.setting.value == 5

    def fails() -> None:
        with index.set_to(9) as adjusted:
            adjusted.search(queries[:, :-1], 10)

    with pytest.raises(SpaceMismatch):
        fails()
    assert index.setting.value == 5


def test_an_index_that_looks_at_all_vectors_has_no_curve():
    index, queries, exact = index_of("Flat")
    assert curve(index, queries, exact, 60) is None


def test_a_curve_that_takes_too_long_has_the_value_in_use():
    index, queries, exact = index_of("IVF32,Flat")
    index.segments[0].operate({"nprobe": 7})
    found = curve(index, queries, exact, 0)
    assert found is not None
    assert [p.value for p in found[1]] == [7]
