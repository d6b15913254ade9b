"""The index against brute force, its tuning, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import LocalStore, MemoryStore

from reembed.config.settings import IndexConfig
from reembed.errors import EncoderError, IntegrityError, ReembedError, SpaceMismatch, UsageError
from reembed.index import build as index_module
from reembed.index.build import (
    EXACT_K,
    ArrayVectors,
    Built,
    ann_recall,
    build,
    choose_factory,
    exact_search,
    gpu_available,
    smallest,
    tune,
)
from reembed.index.files import IndexManifest, load, lower_bound, read_manifest, save
from reembed.index.search import ADD_ROWS, Float32, Int64, checked_batches, read
from reembed.store.records import decode, encode
from reembed.store.storage import to_bytes

CPU = IndexConfig(device="cpu")
PATH = "indexes/r1"


def unit(vectors: np.ndarray) -> Float32:
    rows: Float32 = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return rows


def random_source(rows: int, dim: int, seed: int = 0) -> ArrayVectors:
    rng = np.random.default_rng(seed)
    ids = rng.choice(2**62, size=rows, replace=False).astype(np.int64)
    return ArrayVectors(ids, unit(rng.normal(size=(rows, dim))))


def brute_force(source: ArrayVectors, queries: Float32, k: int) -> tuple[Int64, Float32]:
    scores = queries @ source.vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return source.ids[order], np.take_along_axis(scores, order, axis=1)


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


def save_to(store: LocalStore | MemoryStore, built: Built) -> IndexManifest:
    return save(built, store, PATH, space="3fa91c07", table="tables/x.lance", table_version=4)


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
                yield self.ids[start:end], self.vectors[start:end]

    asked = unit(np.random.default_rng(5).normal(size=(30, 8)))
    ids, scores = exact_search(Uneven(source.ids, source.vectors), asked, 10)
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
        np.testing.assert_array_equal(found_ids[:, 0], source.ids)
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
    few = ArrayVectors(clustered.ids[:3000], clustered.vectors[:3000])
    built = build(few, IndexConfig(device="cpu", factory="IVF16,PQ4x4"), None)
    assert built.operating_point == {"nprobe": 16}
    assert built.tuned_on == "documents"
    assert len(built.recalls) == 200
    assert built.recalls.mean() < 0.9


def test_a_given_nprobe_is_measured_and_not_tuned(clustered: ArrayVectors) -> None:
    few = ArrayVectors(clustered.ids[:3000], clustered.vectors[:3000])
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
    clustered: ArrayVectors, factory: str, knobs: set[str]
) -> None:
    few = ArrayVectors(clustered.ids[:4000], clustered.vectors[:4000])
    built = build(few, IndexConfig(device="cpu", factory=factory, ann_recall=0.9), None)
    assert built.operating_point.keys() == knobs
    assert built.recalls.mean() >= (0.9 if "PCA" not in factory else 0.2)
    store = MemoryStore()
    again = load(store, PATH, save_to(store, built))
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
    half = build(ArrayVectors(source.ids[::2], source.vectors[::2]), CPU, None)
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


def test_ids_are_all_row_ids_in_order(ivf: Built, clustered: ArrayVectors) -> None:
    np.testing.assert_array_equal(ivf.index.ids(), np.sort(clustered.ids))


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat"])
def test_duplicate_ids_are_refused(factory: str) -> None:
    source = random_source(400, 8)
    source.ids[399] = source.ids[7]
    with pytest.raises(IntegrityError, match="1 row ids came more than once"):
        build(source, IndexConfig(device="cpu", factory=factory), None)


def test_negative_ids_are_refused() -> None:
    source = random_source(20, 8)
    source.ids[3] = -1
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
        def batches(self) -> Iterator[tuple[Int64, Float32]]:
            yield self.ids[:-1], self.vectors[:-1]

    source = random_source(50, 8)
    with pytest.raises(IntegrityError, match="50 rows, but 49 were read"):
        build(Short(source.ids, source.vectors), CPU, None)
    with pytest.raises(IntegrityError, match="no rows"):
        build(ArrayVectors(source.ids[:0], source.vectors[:0]), CPU, None)


def test_batches_of_another_shape_are_refused() -> None:
    class Wide(ArrayVectors):
        @property
        def dim(self) -> int:
            return 9

    class Unnamed(ArrayVectors):
        def batches(self) -> Iterator[tuple[Int64, Float32]]:
            yield self.ids[:-1], self.vectors

    source = random_source(50, 8)
    with pytest.raises(IntegrityError, match="9 dimensions"):
        list(checked_batches(Wide(source.ids, source.vectors)))
    with pytest.raises(IntegrityError, match="50 vectors came with"):
        list(checked_batches(Unnamed(source.ids, source.vectors)))


def test_large_batches_are_cut_and_half_precision_is_widened() -> None:
    class OneBatch(ArrayVectors):
        def batches(self) -> Iterator[tuple[Int64, Float32]]:
            yield self.ids, self.vectors

    vectors = np.ones((300_000, 2), dtype=np.float16)
    source = ArrayVectors(np.arange(300_000, dtype=np.int64), vectors)  # type: ignore[arg-type]
    pieces = list(checked_batches(OneBatch(source.ids, source.vectors)))
    assert max(len(ids) for ids, _ in pieces) <= ADD_ROWS
    assert {v.dtype for _, v in pieces} == {np.dtype(np.float32)}


def test_queries_of_another_space_are_refused(flat: Built) -> None:
    with pytest.raises(SpaceMismatch, match="16 dimensions"):
        flat.index.search(np.ones((2, 17), np.float32), 3)
    with pytest.raises(SpaceMismatch):
        build(random_source(20, 8), CPU, np.ones((2, 17), np.float32))
    with pytest.raises(EncoderError):
        flat.index.search(np.full((2, 16), np.nan, np.float32), 3)


@pytest.mark.parametrize("factory", ["Foo", "IVF8,PQ7", "IVF4096,Flat", "IVF8,PQ8x4fs,"])
def test_a_factory_that_does_not_fit_names_the_setting(factory: str) -> None:
    with pytest.raises(UsageError, match=r"index\.factory") as caught:
        build(random_source(300, 16), IndexConfig(device="cpu", factory=factory), None)
    assert caught.value.fix == "reembed run --set index.factory=auto"
    assert caught.value.why is not None
    assert ".cpp" not in caught.value.why


@pytest.mark.skipif(gpu_available(), reason="there is a GPU")
def test_gpu_without_a_gpu_names_the_fix() -> None:
    with pytest.raises(ReembedError) as caught:
        build(random_source(20, 8), IndexConfig(device="gpu"), None)
    assert caught.value.fix == "reembed run --set index.device=auto"


def test_lists_can_be_trained_by_a_helper_index(
    clustered: ArrayVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[faiss.Index] = []

    def stay(_resources: object, _gpu: int, helper: faiss.Index) -> faiss.Index:
        used.append(helper)
        return helper

    few = ArrayVectors(clustered.ids[:4000], clustered.vectors[:4000])
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", stay, raising=False)
    empty = index_module._create("IVF32,PQ16x4fs,RFlat", 32)
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
    clustered: ArrayVectors, queries: Float32, factory: str
) -> None:
    if not gpu_available():
        pytest.skip("no GPU")
    built = build(clustered, IndexConfig(device="gpu", factory=factory), queries)
    assert built.recalls.mean() >= 0.98
    assert built.device.startswith("cpu (" if "fs" in factory else "gpu")
    store = MemoryStore()
    manifest = save_to(store, built)
    np.testing.assert_array_equal(load(store, PATH, manifest).ids(), np.sort(clustered.ids))


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
    odd = ArrayVectors(clustered.ids, unit(clustered.vectors[:, :31]))
    built = build(odd, CPU, None)
    assert built.factory == "IVF1024,Flat"
    assert built.recalls.mean() >= 0.98


def test_saved_and_loaded_is_the_same_index(ivf: Built, queries: Float32, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    manifest = save_to(store, ivf)
    assert manifest == save_to(store, ivf) == read_manifest(store, PATH, manifest.sha256)
    assert manifest.ann_recall_lower <= manifest.ann_recall_at_10 == ivf.recalls.mean()
    assert (manifest.rows, manifest.dim, manifest.num_queries) == (60_000, 32, 200)
    cache = tmp_path / "cache" / "of" / "indexes"
    for index in (
        load(store, PATH, manifest),
        load(store, PATH, manifest, cache),
        load(store, PATH, manifest, cache),
    ):
        for got, want in zip(index.search(queries, 20), ivf.index.search(queries, 20), strict=True):
            np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(index.ids(), ivf.index.ids())
    assert len(list(cache.iterdir())) == 1


def test_manifest_survives_json(flat: Built) -> None:
    manifest = save_to(MemoryStore(), flat)
    assert decode(IndexManifest, json.loads(json.dumps(encode(manifest)))) == manifest


def test_a_damaged_cache_is_fetched_again(flat: Built, tmp_path: Path) -> None:
    store = MemoryStore()
    manifest = save_to(store, flat)
    load(store, PATH, manifest, tmp_path)
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(b"x")
    assert load(store, PATH, manifest, tmp_path).rows == 500
    assert cached.stat().st_size == manifest.size_bytes


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "remove"])
def test_a_tampered_index_is_refused(flat: Built, tmp_path: Path, damage: str) -> None:
    store = LocalStore(str(tmp_path))
    manifest = save_to(store, flat)
    file = tmp_path / PATH / f"{manifest.sha256}.faiss"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    file.write_bytes({"truncate": data[:-1], "grow": data + b"x"}.get(damage, data))
    if damage == "remove":
        file.unlink()
    with pytest.raises(IntegrityError, match=r"\.faiss") as caught:
        load(store, PATH, manifest, tmp_path / "cache")
    assert "reembed status" in (caught.value.fix or "")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": 7},
        {"sha256": "../../x"},
        {"rows": 499},
        {"dim": 8},
        {"dim": "16"},
        {"operating_point": {"nprobe": 4}},
        {"schema_version": 1},
        {"unknown": 1},
    ],
)
def test_a_tampered_manifest_is_refused(
    flat: Built, tmp_path: Path, change: dict[str, object]
) -> None:
    store = LocalStore(str(tmp_path))
    saved = save_to(store, flat)
    (tmp_path / PATH / f"{saved.sha256}.json").write_bytes(to_bytes(encode(saved) | change))
    with pytest.raises((IntegrityError, UsageError)):
        load(store, PATH, read_manifest(store, PATH, saved.sha256))


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_missing_or_broken_manifest_is_refused(tmp_path: Path, text: str | None) -> None:
    store = LocalStore(str(tmp_path))
    if text is not None:
        store.put(f"{PATH}/{'0' * 64}.json", text.encode())
    with pytest.raises(IntegrityError, match=r"no manifest|not a record|not as it was written"):
        read_manifest(store, PATH, "0" * 64)


def test_a_file_that_is_no_row_id_index_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    faiss.write_index(faiss.IndexFlatIP(4), str(plain))
    with pytest.raises(IntegrityError, match="keeps no row ids"):
        read(plain)
    plain.write_bytes(b"not an index")
    with pytest.raises(IntegrityError, match="is not a FAISS index"):
        read(plain)


def test_lower_bound_is_the_student_t_bound() -> None:
    assert lower_bound(np.array([0.9, 1.0, 0.8, 1.0])) == pytest.approx(
        0.925 - 2.353363 * 0.0478714
    )
    assert lower_bound(np.ones(50)) == 1.0
    assert lower_bound(np.ones(1)) == 0.0
