"""Several segments and tombstones answer as one exact search over the rows that are left."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import CPU, PATH, ArrayVectors, build

from reembed.catalog.index_manifest import IndexManifest, Tombstones, read_manifest
from reembed.errors import IntegrityError, SpaceMismatch, UsageError
from reembed.index import files, held, search
from reembed.index.held import HeldIds
from reembed.index.search import SearchIndex
from reembed.index.segments import SegmentedIndex
from reembed.index.types import Float32, Int64
from reembed.store.records import encode
from reembed.store.storage import Storage

DIM = 8
STRINGS = pa.large_string()


def vectors_of(rows: int, seed: int) -> Float32:
    found = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def segment(vectors: Float32, factory: str = "Flat") -> SearchIndex:
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return SearchIndex(index)


def segmented(
    sizes: list[int], tombstones: list[int], factory: str = "Flat"
) -> tuple[SegmentedIndex, Float32]:
    parts = [vectors_of(n, seed) for seed, n in enumerate(sizes)]
    rows = sum(sizes)
    names = ids(0, rows)
    cut = [0, rows // 3, rows]  # not where the segments end
    pieces = [names.slice(a, b - a) for a, b in itertools.pairwise(cut)]
    dead = np.array(sorted(tombstones), np.int64)
    segments = [segment(p, factory) for p in parts]
    return SegmentedIndex(segments, pieces, dead), np.vstack(parts)


def ids(first: int, rows: int, doc_id: pa.DataType = STRINGS) -> pa.RecordBatch:
    numbers = range(first, first + rows)
    names = pa.array([f"d{n}" if doc_id == STRINGS else n for n in numbers], doc_id)
    return pa.record_batch({"row_id": pa.array([10 * n for n in numbers]), "doc_id": names})


def exact(vectors: Float32, tombstones: list[int], queries: Float32, k: int) -> list[list[int]]:
    scores = queries @ vectors.T
    scores[:, tombstones] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, len(vectors) - len(tombstones))]
    return best.tolist()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_segments_and_tombstones_find_what_exact_search_finds(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    rows = sum(sizes)
    tombstones = data.draw(st.lists(st.integers(0, rows - 1), unique=True))
    k = data.draw(st.integers(1, rows + 5))
    index, vectors = segmented(sizes, tombstones)
    queries = vectors_of(7, data.draw(st.integers(100, 10_000)))
    positions, scores = index.nearest(queries, k)
    assert positions.shape == scores.shape == (7, k)
    for found, score, want, query in zip(
        positions, scores, exact(vectors, tombstones, queries, k), queries, strict=True
    ):
        there = found[found >= 0]
        assert there.tolist() == want, "k is filled as long as rows are left, and none is dead"
        assert (found[len(want) :] == -1).all()
        assert np.isneginf(score[len(want) :]).all()
        np.testing.assert_allclose(score[: len(want)], vectors[there] @ query, atol=1e-5)
        assert index.doc_ids(there) == [f"d{n}" for n in want]
        assert index.row_ids(there).tolist() == [10 * n for n in want]
    assert index.rows == rows - len(tombstones)
    alive = np.setdiff1d(np.arange(rows), tombstones).tolist()
    assert index.ids()["doc_id"].to_pylist() == [f"d{n}" for n in alive]
    assert index.ids()["row_id"].to_pylist() == [10 * n for n in alive]


@pytest.mark.parametrize("factory", ["IVF4,Flat", "HNSW8", "SQ8", "IVF4,PQ4x4fs,RFlat", "PQ4x4"])
@pytest.mark.parametrize("dead", [0.0, 0.1, 0.9])
def test_every_kind_of_segment_fills_k_without_the_dead(factory: str, dead: float) -> None:
    rng = np.random.default_rng(3)
    tombstones = rng.choice(900, int(900 * dead), replace=False).tolist()
    index, _ = segmented([600, 300], tombstones, factory)
    for part in index.segments:
        part.operate({"nprobe": 4} if "IVF" in factory else {})
    found, scores = index.nearest(vectors_of(20, 50), 10)
    assert (found >= 0).all()
    assert not np.isin(found, tombstones).any()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_the_best_rows_may_all_be_dead() -> None:
    index, vectors = segmented([500], [])
    query = vectors_of(1, 9)
    ranked = exact(vectors, [], query, 500)[0]
    without, _ = segmented([500], ranked[:300])
    assert without.nearest(query, 5)[0].tolist() == [ranked[300:305]]
    assert index.nearest(query, 5)[0].tolist() == [ranked[:5]]


def saved(storage: Storage, tombstones: Int64) -> tuple[IndexManifest, Float32]:
    """A base and a delta, each saved as an index of its own, then named by one manifest."""
    parts = [vectors_of(n, seed) for seed, n in enumerate((60, 20))]
    made = []
    for number, part in enumerate(parts):
        source = ArrayVectors(np.arange(len(part)) + 1000 * number, part)
        made.append(build(source, CPU, storage=storage).manifest)
    file = Path(storage.root) / "dead.arrow"
    dead_rows = pa.record_batch([pa.array(np.unique(tombstones))], schema=files._TOMBSTONES)
    files.write_batch(dead_rows, file)
    delta = dataclasses.replace(made[1].base, kind="delta")
    dead = Tombstones(files._put(storage, PATH, file), len(np.unique(tombstones)))
    manifest = dataclasses.replace(made[0], segments=(made[0].base, delta), tombstones=dead)
    storage.create(f"{PATH}/{manifest.sha256}.json", encode(manifest))
    return read_manifest(storage, PATH, manifest.sha256), np.vstack(parts)


def test_a_manifest_of_base_delta_and_tombstones_is_loaded_whole(tmp_path: Path) -> None:
    dead = [3, 59, 60, 79]
    manifest, vectors = saved(Storage.open(tmp_path), np.array(dead))
    assert (manifest.rows, len(manifest.files)) == (
        76,
        6,
    )  # both were filled from one trained index
    index = files.load(Storage.open(tmp_path), PATH, manifest)
    assert len(index.segments) == 1
    queries = vectors_of(9, 77)
    positions, _ = index.nearest(queries, 6)
    assert positions.tolist() == exact(vectors, dead, queries, 6)
    assert index.row_ids(np.array([0, 61])).tolist() == [0, 1001]
    assert index.doc_ids(np.array([61, 0])) == [1001, 0]


def test_tombstones_beyond_the_index_or_of_another_number_are_refused(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    manifest, _ = saved(storage, np.array([80]))
    with pytest.raises(IntegrityError, match="tombstone 80 in an index of 80 positions"):
        files.load(storage, PATH, manifest)
    manifest, _ = saved(storage, np.array([3, 4]))
    assert manifest.tombstones
    fewer = dataclasses.replace(manifest.tombstones, rows=1)
    with pytest.raises(IntegrityError, match="holds 78 rows, its manifest says 79"):
        files.load(storage, PATH, dataclasses.replace(manifest, tombstones=fewer))


def test_what_an_index_holds_is_read_segment_by_segment_without_its_vectors(tmp_path: Path) -> None:
    storage, dead = Storage.open(tmp_path), [3, 59, 60, 79]
    manifest, _ = saved(storage, np.array(dead))
    ids_held = HeldIds(storage, PATH, manifest)
    read = [batch for n in range(ids_held.segments) for batch in ids_held.batches(n)]
    positions, rows = (np.concatenate([b[side] for b in read]) for side in (0, 1))
    assert positions.tolist() == np.setdiff1d(np.arange(80), dead).tolist()
    whole = files.load(storage, PATH, manifest).ids()
    assert rows.tolist() == whole["row_id"].to_pylist()
    assert [name for b in read for name in b[2].to_pylist()] == whole["doc_id"].to_pylist()
    assert ids_held.doc_ids([61, 2, 60]) == [1001, 2, 1000]


def test_tombstones_fall_into_the_batch_that_they_are_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_ROWS_A_BATCH", 7)
    dead = [0, 6, 7, 13, 59, 60, 66, 67]
    manifest, _ = saved(Storage.open(tmp_path), np.array(dead))
    ids_held = HeldIds(Storage.open(tmp_path), PATH, manifest)
    read = [b[0] for n in range(ids_held.segments) for b in ids_held.batches(n)]
    assert np.concatenate(read).tolist() == np.setdiff1d(np.arange(80), dead).tolist()


@pytest.mark.parametrize("segment", [0, 1])
def test_an_index_with_other_vectors_than_its_manifest_says_is_not_read(
    tmp_path: Path, segment: int
) -> None:
    """FAISS counts, not the manifest; and each file is held to its digest."""
    storage = Storage.open(tmp_path)
    manifest, _ = saved(storage, np.array([80]))
    with pytest.raises(IntegrityError, match="tombstones"):
        next(HeldIds(storage, PATH, manifest).batches(segment))
    manifest, _ = saved(storage, np.array([3, 4]))
    assert manifest.tombstones
    fewer = dataclasses.replace(manifest.tombstones, rows=1)
    ids_held = HeldIds(storage, PATH, dataclasses.replace(manifest, tombstones=fewer))
    with pytest.raises(IntegrityError, match="2 of 80 positions, where 79 are to be found"):
        next(ids_held.batches(segment))
    swapped = dataclasses.replace(
        manifest.segments[segment], vectors=manifest.segments[1 - segment].vectors
    )
    segments = [swapped if n == segment else s for n, s in enumerate(manifest.segments)]
    other = dataclasses.replace(manifest, segments=tuple(segments))
    with pytest.raises(IntegrityError, match="does not fit its manifest"):
        next(HeldIds(storage, PATH, other).batches(segment))
    path = Path(storage.uri(manifest.segments[segment].vectors.path(PATH)))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="is not the index that was saved"):
        next(HeldIds(storage, PATH, manifest).batches(segment))


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW16", "IVF4,PQ4x4fs,RFlat", "SQ8"])
def test_a_mapped_index_has_the_rows_and_the_results_of_one_in_memory(
    tmp_path: Path, factory: str
) -> None:
    index, queries = segment(vectors_of(400, 0), factory), vectors_of(5, 1)
    search.write(index.faiss_index, tmp_path / "f")
    mapped = SearchIndex(search.read(tmp_path / "f", mapped=True))
    assert (mapped.rows, mapped.dim) == (400, index.dim)
    for got, want in zip(mapped.nearest(queries, 5), index.nearest(queries, 5), strict=True):
        np.testing.assert_array_equal(got, want)


def test_segments_of_another_shape_are_refused() -> None:
    one, names = segment(vectors_of(5, 0)), ids(0, 5)
    with pytest.raises(IntegrityError, match="do not fit each other"):
        SegmentedIndex([one], [names.slice(1)])
    with pytest.raises(IntegrityError, match="do not fit each other"):
        SegmentedIndex([one, one], [names, ids(5, 5, pa.int64())])


def test_what_one_index_refuses_several_refuse() -> None:
    index, _ = segmented([5, 5], [1])
    with pytest.raises(SpaceMismatch):
        index.nearest(np.ones((1, DIM + 1), np.float32), 3)
    with pytest.raises(UsageError):
        index.nearest(np.ones((1, DIM), np.float32), "3")  # type: ignore[arg-type]
    assert index.nearest(np.empty((0, DIM), np.float32), 3)[0].shape == (0, 3)
