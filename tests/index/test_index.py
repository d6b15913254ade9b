"""The index against brute force, its tuning, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import CPU, ArrayVectors, random_source, unit

from reembed.catalog.index_manifest import IndexManifest
from reembed.config.settings import IndexConfig
from reembed.index import build as index_module
from reembed.index.build import (
    EXACT_K,
    Built,
    Trained,
    build,
    choose_factory,
    gpu_available,
    smallest,
    tune,
)
from reembed.index.files import load, save
from reembed.index.search import (
    Float32,
    Int64,
    ann_recall,
    exact_search,
)
from reembed.store.storage import Storage

PATH = "indexes/r1"


def brute_force(source: ArrayVectors, queries: Float32, k: int) -> tuple[Int64, Float32]:
    scores = queries @ source.vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return source.row_ids[order], np.take_along_axis(scores, order, axis=1)


@pytest.fixture(scope="module")
def clustered() -> ArrayVectors:
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(400, 32))
    vectors = centers[rng.integers(400, size=60_000)] + 0.6 * rng.normal(size=(60_000, 32))
    return ArrayVectors(rng.permutation(60_000).astype(np.int64) * 7 + 3, unit(vectors))


@pytest.fixture(scope="module")
def queries(clustered: ArrayVectors) -> Float32:
    noise = np.random.default_rng(2).normal(size=(200, 32)) * 0.05
    return unit(clustered.sample(200, seed=9) + noise)


@pytest.fixture(scope="module")
def exact(clustered: ArrayVectors, queries: Float32) -> tuple[Int64, Float32]:
    return exact_search(clustered, queries, EXACT_K)


@pytest.fixture(scope="module")
def ivf(clustered: ArrayVectors, queries: Float32) -> Built:
    return build(clustered, CPU, queries)


@pytest.fixture(scope="module")
def flat() -> Built:
    return build(random_source(500, 16), CPU, None)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path)


def save_to(storage: Storage, built: Built) -> IndexManifest:
    return save(built, storage, PATH, space="3fa91c07", table="tables/x.lance", table_version=4)


def test_flat_is_brute_force_with_arbitrary_ids() -> None:
    source = random_source(700, 24)
    asked = unit(np.random.default_rng(5).normal(size=(40, 24)))
    built = build(source, CPU, asked)
    ids, scores = built.index.search(asked, 10)
    want_ids, want_scores = brute_force(source, asked, 10)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(scores, want_scores, atol=1e-6)
    assert (built.factory, built.device, built.operating_point) == ("Flat", "cpu", {})
    assert built.tuned_on == "queries"
    assert built.recalls.tolist() == [1.0] * 40


def test_exact_search_merges_batches_of_any_size() -> None:
    source = random_source(331, 8)

    class Uneven(ArrayVectors):
        def batches(self) -> Iterator[tuple[Int64, Float32]]:
            for start, end in [(0, 3), (3, 3), (3, 200), (200, 331)]:
                yield self.row_ids[start:end], self.vectors[start:end]

    asked = unit(np.random.default_rng(5).normal(size=(30, 8)))
    ids, scores = exact_search(Uneven(source.row_ids, source.vectors), asked, 10)
    want_ids, want_scores = brute_force(source, asked, 10)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(scores, want_scores, atol=1e-6)


def test_fewer_rows_than_k_are_padded_and_count_as_found() -> None:
    source = random_source(4, 8)
    built = build(source, CPU, None)
    ids, scores = built.index.search(source.vectors, 10)
    for found_ids, found_scores in [(ids, scores), exact_search(source, source.vectors, 10)]:
        assert (found_ids[:, 4:] == -1).all()
        assert np.isneginf(found_scores[:, 4:]).all()
        np.testing.assert_array_equal(found_ids[:, 0], source.row_ids)
    assert built.recalls.tolist() == [1.0] * 4


def test_automatic_ivf_reaches_its_target_with_the_fewest_lists(
    ivf: Built, queries: Float32, exact: tuple[Int64, Float32]
) -> None:
    assert ivf.factory == "IVF1024,PQ16x4fs,RFlat"
    assert ivf.recalls.mean() >= 0.98
    point = ivf.operating_point
    assert 1 < point["nprobe"] < 1024
    ivf.index.operate({**point, "nprobe": point["nprobe"] - 1})
    fewer = ann_recall(ivf.index, queries, *exact).mean()
    ivf.index.operate(point)
    assert fewer < 0.98


def test_recall_counts_what_brute_force_finds(
    ivf: Built, clustered: ArrayVectors, queries: Float32
) -> None:
    want, _ = brute_force(clustered, queries, 10)
    found, _ = ivf.index.search(queries, 10)
    by_id = [len(set(a) & set(b)) / 10 for a, b in zip(want, found, strict=True)]
    assert (ivf.recalls >= np.array(by_id) - 1e-9).all()
    assert abs(ivf.recalls.mean() - np.mean(by_id)) < 0.005


def test_a_higher_target_never_takes_fewer_lists(
    ivf: Built, queries: Float32, exact: tuple[Int64, Float32]
) -> None:
    points = [tune(ivf.index, queries, *exact, target)[0] for target in (0.5, 0.9, 0.98, 0.99)]
    ivf.index.operate(ivf.operating_point)
    cost = [(p["k_factor"], p["nprobe"]) for p in points]
    assert cost == sorted(cost)


def test_an_unreachable_target_is_reported_honestly(clustered: ArrayVectors) -> None:
    few = ArrayVectors(clustered.row_ids[:3000], clustered.vectors[:3000])
    built = build(few, IndexConfig(device="cpu", factory="IVF16,PQ4x4"), None)
    assert built.operating_point == {"nprobe": 16}
    assert built.tuned_on == "documents"
    assert len(built.recalls) == 200
    assert built.recalls.mean() < 0.9


def test_a_given_nprobe_is_measured_and_not_tuned(clustered: ArrayVectors) -> None:
    few = ArrayVectors(clustered.row_ids[:3000], clustered.vectors[:3000])
    low = build(few, IndexConfig(device="cpu", factory="IVF64,Flat", nprobe=1), None)
    high = build(few, IndexConfig(device="cpu", factory="IVF64,Flat", nprobe=999), None)
    assert low.operating_point == {"nprobe": 1}
    assert high.operating_point == {"nprobe": 64}
    assert low.recalls.mean() < 0.98
    assert high.recalls.mean() == 1.0


@pytest.mark.parametrize(
    ("factory", "knobs"),
    [
        ("HNSW16", {"ef_search"}),
        ("HNSW16,SQ8", {"ef_search"}),
        ("IVF64_HNSW8,SQ8", {"nprobe"}),
        ("IDMap2,IVF64,Flat", {"nprobe"}),
        ("PCA16,IVF32,Flat", {"nprobe"}),
        ("IVF32,PQ16x4fs,Refine(SQfp16)", {"nprobe", "k_factor"}),
        ("SQfp16", set()),
    ],
)
def test_other_kinds_build_tune_and_come_back(
    clustered: ArrayVectors, storage: Storage, factory: str, knobs: set[str]
) -> None:
    few = ArrayVectors(clustered.row_ids[:4000], clustered.vectors[:4000])
    built = build(few, IndexConfig(device="cpu", factory=factory, ann_recall=0.9), None)
    assert built.operating_point.keys() == knobs
    assert built.recalls.mean() >= (0.9 if "PCA" not in factory else 0.2)
    again = load(storage, PATH, save_to(storage, built))
    np.testing.assert_array_equal(
        again.search(few.vectors[:50], 10)[0], built.index.search(few.vectors[:50], 10)[0]
    )


def test_duplicate_documents_tie_and_cost_no_recall() -> None:
    vectors = np.repeat(random_source(50, 16).vectors, 30, axis=0)
    source = ArrayVectors(np.arange(1500, dtype=np.int64), vectors)
    for factory in ("Flat", "SQfp16"):
        built = build(source, IndexConfig(device="cpu", factory=factory), None)
        assert built.recalls.tolist() == [1.0] * 200


def test_a_score_near_the_tenth_is_no_hit() -> None:
    source = random_source(2000, 16)
    half = build(ArrayVectors(source.row_ids[::2], source.vectors[::2]), CPU, None)
    recalls = ann_recall(
        half.index, source.vectors[:300], *exact_search(source, source.vectors[:300], EXACT_K)
    )
    assert 0.4 < recalls.mean() < 0.6


@given(threshold=st.integers(1, 3000), most=st.integers(1, 2048))
def test_smallest_finds_the_threshold(threshold: int, most: int) -> None:
    calls: list[int] = []

    def reaches(value: int) -> bool:
        calls.append(value)
        return value >= threshold

    assert smallest(reaches, most) == (threshold if threshold <= most else None)
    assert max(calls) <= most
    assert len(calls) == len(set(calls)) <= 24


def test_ids_stand_beside_the_vectors_in_their_order(ivf: Built, clustered: ArrayVectors) -> None:
    np.testing.assert_array_equal(ivf.index.row_ids, clustered.row_ids)
    assert ivf.doc_ids.to_pylist() == clustered.row_ids.tolist()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "IVF8,PQ4x4fs,RFlat", "HNSW8", "SQ8"])
def test_a_trained_index_is_emptied_and_filled_again(factory: str) -> None:
    first, second = random_source(400, 8), random_source(300, 8, seed=1)
    config = IndexConfig(device="cpu", factory=factory)
    trained = build(first, config, None).index
    again = build(second, config, None, Trained(factory, trained, 300))
    assert (again.index.rows, again.rows_since_training) == (300, 300)
    np.testing.assert_array_equal(again.index.row_ids, second.row_ids)
    exact, _ = exact_search(second, second.vectors[:50], 1)
    found, _ = again.index.search(second.vectors[:50], 1)
    assert (found == exact).mean() > 0.9


def test_lists_can_be_trained_by_a_helper_index(
    clustered: ArrayVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[faiss.Index] = []

    def stay(_resources: object, _gpu: int, helper: faiss.Index) -> faiss.Index:
        used.append(helper)
        return helper

    few = ArrayVectors(clustered.row_ids[:4000], clustered.vectors[:4000])
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", stay, raising=False)
    empty = index_module._empty("IVF32,PQ16x4fs,RFlat", 32, None)
    index_module._train(empty, few, "IVF32,PQ16x4fs,RFlat", object())
    assert used
    assert empty.is_trained
    ivf: Any = faiss.try_extract_index_ivf(empty)
    assert ivf.clustering_index is None


@pytest.mark.gpu
@pytest.mark.parametrize(
    "factory", ["IVF256,Flat", "IVF256,SQfp16", "Flat", "IVF256,PQ16x4fs,RFlat"]
)
def test_gpu_builds_a_portable_index(
    clustered: ArrayVectors, queries: Float32, storage: Storage, factory: str
) -> None:
    if not gpu_available():
        pytest.skip("no GPU")
    built = build(clustered, IndexConfig(device="gpu", factory=factory), queries)
    assert built.recalls.mean() >= 0.98
    assert built.device.startswith("cpu (" if "fs" in factory else "gpu")
    loaded = load(storage, PATH, save_to(storage, built))
    np.testing.assert_array_equal(loaded.segments[0].row_ids, clustered.row_ids)


@pytest.mark.parametrize(
    ("rows", "dim", "gpu", "factory"),
    [
        (1, 384, False, "Flat"),
        (50_000, 384, True, "Flat"),
        (50_001, 384, False, "IVF1024,PQ192x4fs,RFlat"),
        (200_000, 384, False, "IVF2048,PQ192x4fs,RFlat"),
        (1_000_000, 768, False, "IVF4096,PQ384x4fs,RFlat"),
        (1_000_000, 768, True, "IVF4096,Flat"),
        (1_000_000, 767, False, "IVF4096,Flat"),
        (1_000_001, 384, False, "IVF16384,PQ192x4fs,RFlat"),
        (10_000_000, 384, False, "IVF65536,PQ192x4fs,RFlat"),
        (10_000_000, 384, True, "IVF65536,SQfp16"),
        (10_000_001, 384, False, "IVF262144_HNSW32,SQ8"),
    ],
)
def test_automatic_choice(rows: int, dim: int, gpu: bool, factory: str) -> None:
    assert choose_factory(rows, dim, gpu=gpu) == factory
    assert faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT).d == dim


def test_odd_dimensions_build(clustered: ArrayVectors) -> None:
    odd = ArrayVectors(clustered.row_ids, unit(clustered.vectors[:, :31]))
    built = build(odd, CPU, None)
    assert built.factory == "IVF1024,Flat"
    assert built.recalls.mean() >= 0.98
