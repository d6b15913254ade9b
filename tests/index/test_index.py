"""The index against brute force, its tuning, and what is refused."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import CPU, PATH, ArrayVectors, Built, build, random_source, unit

from reembed.config.settings import IndexConfig
from reembed.errors import UsageError
from reembed.index.build import Trained
from reembed.index.exact import EXACT_K, Batch, ann_recall, exact_search
from reembed.index.factories import choose_factory
from reembed.index.files import load
from reembed.index.train import Device, gpu_available, train
from reembed.index.tune import ladder, most_lists
from reembed.index.types import Float32, Int64
from reembed.store.storage import Storage


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


def test_flat_is_brute_force_with_arbitrary_ids() -> None:
    source = random_source(700, 24)
    asked = unit(np.random.default_rng(5).normal(size=(40, 24)))
    built = build(source, CPU, asked)
    ids, scores = built.index.search(asked, 10)
    want_ids, want_scores = brute_force(source, asked, 10)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(scores, want_scores, atol=1e-6)
    base = built.manifest.base
    assert (base.factory, base.device, base.operating_point) == ("Flat", "cpu", {})
    assert (built.manifest.tuned_on, built.manifest.num_queries) == ("queries", 40)
    assert built.manifest.ann_recall_at_10 == 1.0


def test_exact_search_merges_batches_of_any_size() -> None:
    source = random_source(331, 8)

    class Uneven(ArrayVectors):
        def batches(self, fragments: Sequence[int] | None = None) -> Iterator[Batch]:
            for start, end in [(0, 3), (3, 3), (3, 200), (200, 331)]:
                ids = self.row_ids[start:end]
                yield ids, pa.array(ids), self.vectors[start:end]

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
    assert built.manifest.ann_recall_at_10 == 1.0


def test_automatic_ivf_reaches_its_target_with_the_fewest_lists(
    ivf: Built, queries: Float32, exact: tuple[Int64, Float32]
) -> None:
    manifest = ivf.manifest
    assert manifest.base.factory == "IVF1024,PQ16x4fs,RFlat"
    assert manifest.ann_recall_at_10 >= 0.98
    point = manifest.base.operating_point
    assert 1 < point["nprobe"] < 1024
    values = ladder(1, 1024)
    ivf.operate({**point, "nprobe": values[values.index(point["nprobe"]) - 1]})
    fewer = ann_recall(ivf.index, queries, *exact).mean()
    ivf.operate(point)
    assert fewer < 0.98


def test_recall_counts_what_brute_force_finds(
    ivf: Built, clustered: ArrayVectors, queries: Float32, exact: tuple[Int64, Float32]
) -> None:
    want, _ = brute_force(clustered, queries, 10)
    found, _ = ivf.index.search(queries, 10)
    by_id = [len(set(a) & set(b)) / 10 for a, b in zip(want, found, strict=True)]
    measured = ann_recall(ivf.index, queries, *exact)
    assert (measured >= np.array(by_id) - 1e-9).all()
    assert measured.mean() == ivf.manifest.ann_recall_at_10
    assert abs(measured.mean() - np.mean(by_id)) < 0.005


def test_a_higher_target_never_takes_fewer_lists(clustered: ArrayVectors, queries: Float32) -> None:
    few = ArrayVectors(clustered.row_ids[:6000], clustered.vectors[:6000])
    settings = CPU.model_copy(update={"factory": "IVF64,PQ16x4fs,RFlat"})
    targets = (0.5, 0.9, 0.98, 0.99)
    built = [
        build(few, settings.model_copy(update={"ann_recall": target}), queries)
        for target in targets
    ]
    points = [b.manifest.base.operating_point for b in built]
    cost = [(p["k_factor"], p["nprobe"]) for p in points]
    assert cost == sorted(cost)
    assert len(set(cost)) > 1


def test_a_target_that_no_operating_point_reaches_is_refused_with_what_could_be_done(
    clustered: ArrayVectors,
) -> None:
    few = ArrayVectors(clustered.row_ids[:3000], clustered.vectors[:3000])
    with pytest.raises(
        UsageError, match=r"IVF16,PQ4x4 does not reach index\.ann_recall 0\.98"
    ) as no:
        build(few, IndexConfig(device="cpu", factory="IVF16,PQ4x4"), None)
    assert "200 documents" in (no.value.why or "")
    finer = re.match(r"reembed run --set index\.factory=(\S+) ", no.value.fix or "")
    assert build(few, IndexConfig(device="cpu", factory=finer[1]), None)
    lower = float((no.value.fix or "").split("index.ann_recall=")[1].split()[0])
    reached = build(few, IndexConfig(device="cpu", factory="IVF16,PQ4x4", ann_recall=lower), None)
    assert lower <= reached.manifest.ann_recall_at_10 < 0.9
    assert reached.manifest.base.operating_point["nprobe"] <= 16


def test_a_large_index_never_probes_most_of_its_lists() -> None:
    assert most_lists(16, 3_000) == 16
    assert most_lists(1024, 100_000) == 512
    assert most_lists(4096, 1_000_000) == 1024
    assert most_lists(1, 10**9) == 1


@given(least=st.integers(1, 20), most=st.integers(20, 300_000))
def test_a_ladder_climbs_by_an_eighth_at_most(least: int, most: int) -> None:
    values = ladder(least, most)
    assert (values[0], values[-1]) == (least, most)
    assert all(a < b <= max(a + 1, 1.26 * a) for a, b in itertools.pairwise(values))
    assert len(values) < 110


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
    target = 0.9 if "PCA" not in factory else 0.2
    settings = IndexConfig(device="cpu", factory=factory, ann_recall=target)
    built = build(few, settings, None, storage=storage)
    assert built.manifest.base.operating_point.keys() == knobs
    assert built.manifest.ann_recall_at_10 >= target
    again = load(storage, PATH, built.manifest)
    np.testing.assert_array_equal(
        again.search(few.vectors[:50], 10)[0], built.index.search(few.vectors[:50], 10)[0]
    )


def test_duplicate_documents_tie_and_cost_no_recall() -> None:
    vectors = np.repeat(random_source(50, 16).vectors, 30, axis=0)
    source = ArrayVectors(np.arange(1500, dtype=np.int64), vectors)
    for factory in ("Flat", "SQfp16"):
        built = build(source, IndexConfig(device="cpu", factory=factory), None)
        assert built.manifest.ann_recall_at_10 == 1.0


def test_a_score_near_the_tenth_is_no_hit() -> None:
    source = random_source(2000, 16)
    half = build(ArrayVectors(source.row_ids[::2], source.vectors[::2]), CPU, None)
    recalls = ann_recall(
        half.index, source.vectors[:300], *exact_search(source, source.vectors[:300], EXACT_K)
    )
    assert 0.4 < recalls.mean() < 0.6


def test_ids_stand_beside_the_vectors_in_their_order(ivf: Built, clustered: ArrayVectors) -> None:
    held = ivf.index.ids()
    assert held["row_id"].to_pylist() == clustered.row_ids.tolist()
    assert held["doc_id"].to_pylist() == clustered.row_ids.tolist()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "IVF8,PQ4x4fs,RFlat", "HNSW8", "SQ8"])
def test_a_trained_index_is_filled_with_other_vectors(tmp_path: Path, factory: str) -> None:
    storage = Storage.open(tmp_path)
    first, second = random_source(400, 8), random_source(300, 8, seed=1)
    config = IndexConfig(device="cpu", factory=factory, ann_recall=0.8)
    base = build(first, config, None, storage=storage).manifest.base
    other = Storage.open(tmp_path)
    trained = Trained(PATH, base.trained, 300)
    again = build(second, config, None, trained, other)
    assert (again.index.rows, again.manifest.base.rows_since_training) == (300, 300)
    assert again.manifest.base.trained == base.trained
    assert again.index.ids()["row_id"].to_pylist() == second.row_ids.tolist()
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
    trained = train(few, "IVF32,PQ16x4fs,RFlat", Device(object(), whole=False))
    assert used
    assert trained.is_trained
    ivf: Any = faiss.try_extract_index_ivf(trained)
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
    settings = IndexConfig(device="gpu", factory=factory)
    built = build(clustered, settings, queries, storage=storage)
    assert built.manifest.ann_recall_at_10 >= 0.98
    assert built.manifest.base.device.startswith("cpu (" if "fs" in factory else "gpu")
    assert built.index.ids()["row_id"].to_pylist() == clustered.row_ids.tolist()


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
        (1_000_001, 384, False, "IVF16384,PQ192x4fs,Refine(SQ8)"),
        (10_000_000, 384, False, "IVF65536,PQ192x4fs,Refine(SQ8)"),
        (10_000_000, 384, True, "IVF65536,SQ8"),
        (10_000_001, 384, False, "IVF131072_HNSW32,PQ192x4fs,Refine(SQ8)"),
        (100_000_000, 384, False, "IVF262144_HNSW32,PQ192x4fs,Refine(SQ8)"),
        (100_000_000, 768, False, "IVF131072_HNSW32,PQ384x4fs,Refine(SQ8)"),
        (100_000_000, 767, False, "IVF131072_HNSW32,SQ8"),
    ],
)
def test_automatic_choice(rows: int, dim: int, gpu: bool, factory: str) -> None:
    assert choose_factory(rows, dim, gpu=gpu) == factory
    assert faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT).d == dim


def test_odd_dimensions_build(clustered: ArrayVectors) -> None:
    odd = ArrayVectors(clustered.row_ids, unit(clustered.vectors[:, :31]))
    built = build(odd, CPU, None)
    assert built.manifest.base.factory == "IVF1024,Flat"
    assert built.manifest.ann_recall_at_10 >= 0.98
