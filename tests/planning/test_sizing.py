"""The formulas of sizes against indexes that FAISS built, and the constants against the records they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from reembed.config.settings import IndexConfig
from reembed.index.factories import choose_factory, kind_of
from reembed.index.files import COPY_BYTES
from reembed.planning import measured
from reembed.planning.sizing import bytes_of_trained, bytes_per_vector, size_of
from reembed.strategies.unique_ids import HELD_IDS

RESULTS = Path(__file__).parents[2] / "bench" / "results"
FACTORIES = [
    "Flat", "SQ8", "SQfp16", "PQ16x4", "PQ16x4fs", "IVF64,Flat", "IVF64,SQ8", "IVF64,SQfp16",
    "IVF64,PQ16x4", "IVF64,PQ16x4fs", "IVF64,PQ16x4fs,RFlat", "IVF64,PQ16x4fs,Refine(SQ8)",
    "IVF64,PQ16x4fs,Refine(SQfp16)", "IVF64_HNSW32,PQ16x4fs,Refine(SQ8)", "IVF64_HNSW16,SQ8",
    "HNSW32", "HNSW16,SQ8",
]  # fmt: skip


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("rows", [4_000, 8_000])
def test_bytes_are_those_of_the_file_that_faiss_writes(factory: str, rows: int) -> None:
    dim = 32
    vectors = np.random.default_rng(0).standard_normal((rows, dim), dtype=np.float32)
    index: Any = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[:4_000])
    empty = len(faiss.serialize_index(index))
    index.add(vectors)
    written = len(faiss.serialize_index(index))
    size = size_of(factory, rows, dim, rows)
    kind = kind_of(factory)
    assert size is not None
    assert kind is not None
    assert size.bytes == size.shard_bytes == pytest.approx(written, rel=0.05)
    ends = kind.is_fast_scan * bytes_of_trained(kind, dim)
    assert rows * bytes_per_vector(kind, dim) + ends == pytest.approx(
        written - empty, rel=0.05, abs=ends
    )


@pytest.mark.parametrize("rows", [10**7, 10**8, 10**9])
def test_an_object_store_copies_the_files_of_the_defaults_by_itself(rows: int) -> None:
    factory = choose_factory(rows, 768, gpu=False)
    size = size_of(factory, rows, 768, IndexConfig().shard_rows)
    assert size is not None
    assert size.shard_bytes < COPY_BYTES


@pytest.mark.parametrize(
    "factory", ["LSH", "IVF64,RaBitQfs", "PCA32,IVF64,Flat", "OPQ16,IVF8,PQ16"]
)
def test_a_kind_that_is_not_known_has_no_size(factory: str) -> None:
    assert size_of(factory, 1_000, 64, 1_000) is None


def test_shards_are_of_one_size_and_each_holds_what_was_trained() -> None:
    whole = size_of("IVF64,SQ8", 10_000, 64, 10_000)
    cut = size_of("IVF64,SQ8", 10_000, 64, 3_000)
    assert whole is not None
    assert cut is not None
    assert (whole.shards, cut.shards) == (1, 4)
    trained = 4 * 64 * 64 + 8 * 64 + 8 * 64
    assert cut.bytes == whole.bytes + 3 * trained
    assert cut.shard_bytes == 2_500 * (64 + 8) + trained
    assert cut.fill < whole.fill
    assert cut.refresh == cut.serve, "mapped"


def test_codes_in_blocks_are_held_twice_while_an_index_is_replaced() -> None:
    size = size_of("IVF64,PQ32x4fs,Refine(SQ8)", 10_000, 64, 10_000)
    assert size is not None
    assert size.refresh - size.serve == 10_000 * (16 + 8)


@pytest.mark.parametrize("codes", ["PQ", "RQ", "FLAT"])
def test_sizes_in_lance_are_those_of_the_bench(codes: str) -> None:
    bench = record("index_shards")["lance"]
    train, built = bench[codes]["train"], bench[codes]["segment"]
    size = size_of(built["factory"], bench["rows"], bench["dim"], bench["rows"])
    assert size is not None
    assert size.bytes == size.shard_bytes == pytest.approx(built["file_mib"] * 2**20, rel=0.1)
    assert built["peak_mib"] * 2**20 <= size.fill <= 1.8 * built["peak_mib"] * 2**20
    assert train["peak_mib"] * 2**20 <= size.train
    many = size_of(built["factory"], 2 * bench["rows"], bench["dim"], bench["rows"])
    assert many is not None
    assert (many.shards, many.fill, many.bytes) == (2, size.fill, 2 * size.bytes)


@pytest.mark.parametrize(
    ("rows", "dim", "lists", "peak_mib"),
    [
        (140_000, 768, 128, 114), (140_000, 768, 512, 270), (140_000, 768, 1_024, 615), (140_000, 768, 2_048, 1_131),
        (400_000, 384, 1_024, 281), (400_000, 384, 2_048, 685), (400_000, 384, 4_096, 1_222),
    ],
)  # fmt: skip
def test_memory_of_training_in_lance_is_above_what_was_measured(
    rows: int, dim: int, lists: int, peak_mib: int
) -> None:
    """docs/decisions/026."""
    size = size_of(f"IVF{lists}_FLAT", rows, dim, rows)
    assert size is not None
    assert size.sample == 64 * lists
    peak = peak_mib * measured.MIB
    assert peak <= size.train <= 1.2 * peak + measured.TASK_BYTES
    with_codebook = size_of(f"IVF{lists}_PQ{dim // 4}", rows, dim, rows)
    assert with_codebook is not None
    assert with_codebook.train >= size.train


def record(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def test_constants_are_those_of_the_records() -> None:
    growth, pipeline = record("growth")["now"], record("pipeline")
    checked = growth["check_documents"]
    grown = checked["3000000"]["peak_mib"] - checked["1000000"]["peak_mib"]
    assert grown * measured.MIB / 2e6 == pytest.approx(measured.DRIVER_BYTES_PER_DOCUMENT, abs=1)
    assert growth["verify"]["3000000"]["peak_mib"] * measured.MIB < measured.VERIFY_TASK_BYTES
    per_document = growth["verify"]["3000000"]["cpu_s"] / 3e6
    assert per_document == pytest.approx(measured.VERIFY_S_PER_DOCUMENT, rel=0.02)
    assert max(pipeline["driver_peak_mib"].values()) * measured.MIB <= measured.DRIVER_BYTES
    units = record("million")["units_driver_peak_mib"] * measured.MIB - measured.DRIVER_BYTES
    assert units / 100_000 <= measured.DRIVER_BYTES_PER_UNIT
    assert measured.DOCUMENTS_ON_DRIVER == HELD_IDS
    rate = record("gpu_encode")["bert_base_tokens_per_s"]
    assert rate == measured.BERT_BASE_TOKENS_PER_GPU_S
    busy = record("scaling")["sleeping"][-1]
    assert busy["actors"] == 64
    assert busy["steady_busy"] == pytest.approx(measured.GPUS_BUSY, abs=0.01)
    assert record("search")["1m_64"]["ids_mib"] * measured.MIB / 1e6 <= measured.ID_BYTES


def test_memory_is_what_the_tasks_of_the_bench_took_at_most() -> None:
    bench = record("index_shards")
    for factory, took in bench["peak_ratios"].items():
        size = size_of(factory, took["rows"], bench["dim"], took["rows"])
        assert size is not None
        assert took["peak_mib"] * measured.MIB <= size.fill <= 1.8 * took["peak_mib"] * measured.MIB
        trained = bench["trained"][factory]["peak_mib"] * measured.MIB
        assert trained <= size.train
        assert size.shard_bytes == pytest.approx(took["bytes_per_vector"] * took["rows"], rel=0.05)
    at_once = size_of(bench["factory"], bench["rows"], bench["dim"], bench["rows"])
    assert at_once is not None
    assert bench["single"]["peak_mib"] * measured.MIB <= at_once.fill


def test_rates_are_those_of_the_bench() -> None:
    bench = record("index_shards")
    a_byte = bench["fill_us_per_vector_768"] * 1e-6 / (4 * 768)
    assert a_byte == pytest.approx(measured.FILL_S_PER_BYTE, rel=0.1)
    hashed = bench["sha256_ns_per_byte"] * 1e-9
    assert hashed == pytest.approx(measured.SHA256_S_PER_BYTE, rel=0.2)
    flops = 2 * 65_536 * 1_024 * bench["dim"] * measured.KMEANS_ITERATIONS
    rates = [flops / took["cpu_s"] for took in bench["trained"].values()]
    assert min(rates) < measured.TRAIN_FLOPS_PER_CPU_S < 1.2 * max(rates)
