"""What no index is built from: each is refused before FAISS would take it silently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
from vectors import CPU, ArrayVectors, build, random_source

from reembed.config.settings import IndexConfig
from reembed.errors import EncoderError, IntegrityError, ReembedError, SpaceMismatch, UsageError
from reembed.index.exact import ADD_ROWS, Batch, checked_batches
from reembed.index.train import gpu_available


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_duplicate_ids_are_refused(factory: str) -> None:
    source = random_source(400, 8)
    source.row_ids[399] = source.row_ids[7]
    with pytest.raises(IntegrityError, match="1 row ids appear more than once"):
        build(source, IndexConfig(device="cpu", factory=factory), None)


def test_negative_ids_are_refused() -> None:
    source = random_source(20, 8)
    source.row_ids[3] = -1
    with pytest.raises(IntegrityError, match="negative"):
        build(source, CPU, None)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_vectors_that_are_not_finite_are_refused(value: float, factory: str) -> None:
    source = random_source(400, 8)
    source.vectors[123, 4] = value
    with pytest.raises(IntegrityError, match=r"1 of \d+ vectors hold NaN"):
        build(source, IndexConfig(device="cpu", factory=factory), None)


def test_missing_rows_and_empty_tables_are_refused() -> None:
    class Short(ArrayVectors):
        def batches(self, fragments: Sequence[int] | None = None) -> Iterator[Batch]:
            yield self.row_ids[:-1], pa.array(self.row_ids[:-1]), self.vectors[:-1]

    source = random_source(50, 8)
    with pytest.raises(IntegrityError, match="50 rows there, but 49 were read"):
        build(Short(source.row_ids, source.vectors), CPU, None)
    with pytest.raises(IntegrityError, match="no rows"):
        build(ArrayVectors(source.row_ids[:0], source.vectors[:0]), CPU, None)


def test_batches_of_another_shape_are_refused() -> None:
    class Wide(ArrayVectors):
        @property
        def dim(self) -> int:
            return 9

    class Unnamed(ArrayVectors):
        def batches(self, fragments: Sequence[int] | None = None) -> Iterator[Batch]:
            yield self.row_ids[:-1], pa.array(self.row_ids[:-1]), self.vectors

    class Nameless(ArrayVectors):
        def batches(self, fragments: Sequence[int] | None = None) -> Iterator[Batch]:
            yield self.row_ids, pa.array(self.row_ids[:-1]), self.vectors

    source = random_source(50, 8)
    with pytest.raises(IntegrityError, match="9 dimensions"):
        list(checked_batches(Wide(source.row_ids, source.vectors)))
    with pytest.raises(IntegrityError, match="50 vectors came with"):
        list(checked_batches(Unnamed(source.row_ids, source.vectors)))
    with pytest.raises(IntegrityError, match="50 rows came with 49 document ids"):
        list(checked_batches(Nameless(source.row_ids, source.vectors)))


def test_large_batches_are_cut_and_half_precision_is_widened() -> None:
    class OneBatch(ArrayVectors):
        def batches(self, fragments: Sequence[int] | None = None) -> Iterator[Batch]:
            yield self.row_ids, pa.array(self.row_ids), self.vectors

    vectors = np.ones((300_000, 2), dtype=np.float16)
    source = ArrayVectors(np.arange(300_000, dtype=np.int64), vectors)  # type: ignore[arg-type]
    pieces = list(checked_batches(OneBatch(source.row_ids, source.vectors)))
    assert max(len(ids) for ids, _, _ in pieces) <= ADD_ROWS
    assert [len(names) for _, names, _ in pieces] == [len(ids) for ids, _, _ in pieces]
    assert {v.dtype for _, _, v in pieces} == {np.dtype(np.float32)}


def test_queries_of_another_space_are_refused() -> None:
    flat = build(random_source(500, 16), CPU, None)
    with pytest.raises(SpaceMismatch, match="16 dimensions"):
        flat.index.search(np.ones((2, 17), np.float32), 3)
    with pytest.raises(SpaceMismatch, match=r"where \[Q, 16\] is needed"):
        flat.index.search(np.ones(16, np.float32), 3)
    with pytest.raises(SpaceMismatch):
        build(random_source(20, 8), CPU, np.ones((2, 17), np.float32))
    with pytest.raises(EncoderError):
        flat.index.search(np.full((2, 16), np.nan, np.float32), 3)


@pytest.mark.parametrize("factory", ["Foo", "IVF8,PQ7", "PQ8x10", "IVF8,PQ8x4fs,"])
def test_a_factory_that_does_not_fit_names_the_setting(factory: str) -> None:
    with pytest.raises(UsageError, match=r"index\.factory") as caught:
        build(random_source(320, 16), IndexConfig(device="cpu", factory=factory), None)
    assert caught.value.fix == "reembed run --set index.factory=auto"
    assert caught.value.why is not None
    assert ".cpp" not in caught.value.why


def test_lists_that_too_few_vectors_would_train_are_refused() -> None:
    settings = IndexConfig(device="cpu", factory="IVF64_HNSW8,Flat")
    with pytest.raises(UsageError, match=r"index\.factory 'IVF64_HNSW8,Flat'") as caught:
        build(random_source(64 * 39 - 1, 8), settings, None)
    assert "64 lists are trained on at least 2,496 vectors, 2,495 can be read" in str(caught.value)
    assert (caught.value.fix or "").startswith("reembed run --set index.factory=IVF32_HNSW8,Flat")
    assert build(random_source(64 * 39, 8), settings, None).index.rows == 64 * 39


@pytest.mark.skipif(gpu_available(), reason="there is a GPU")
def test_gpu_without_a_gpu_names_the_fix() -> None:
    with pytest.raises(ReembedError) as caught:
        build(random_source(20, 8), IndexConfig(device="gpu"), None)
    assert caught.value.fix == "reembed run --set index.device=auto"
