"""An index that was built in shards answers as one that was built at once, and no shard is lost or counted twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import CPU, PATH, WHERE, ArrayVectors, build, random_source, unit

from reembed import faults
from reembed.config.settings import IndexConfig
from reembed.errors import IntegrityError
from reembed.index import build as steps
from reembed.index import files
from reembed.index import fill as fill_module
from reembed.index.build import Build, Prepared, Trained, cut_into_shards
from reembed.index.exact import EXACT_K, ann_recall, exact_search
from reembed.index.target import Target, TargetMissed, better
from reembed.index.tune import Measured, Tuned, choose
from reembed.index.types import Float32
from reembed.store.records import encode
from reembed.store.storage import Storage

ROWS, DIM = 4_000, 32


@pytest.fixture(scope="module")
def vectors() -> ArrayVectors:
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(50, DIM))
    found = centers[rng.integers(50, size=ROWS)] + 0.6 * rng.normal(size=(ROWS, DIM))
    return ArrayVectors(rng.permutation(ROWS).astype(np.int64) * 7, unit(found), 300)


@pytest.fixture(scope="module")
def queries(vectors: ArrayVectors) -> Float32:
    return unit(vectors.sample(100, seed=9) + np.random.default_rng(2).normal(size=(100, DIM)) / 20)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path)


def settings(factory: str = "IVF32,Flat", shard_rows: int = 1_000) -> IndexConfig:
    return IndexConfig(device="cpu", factory=factory, ann_recall=0.9, shard_rows=shard_rows)


def prepared(storage: Storage, source: ArrayVectors, **more: object) -> tuple[Build, Prepared]:
    work = Build(storage, PATH, "runs/r/index", source, settings().model_copy(update=more))
    return work, steps.prepare(work, None)


FACTORIES = [
    "Flat", "SQ8", "IVF32,Flat", "IVF32,SQ8", "IVF32,PQ16x4fs,RFlat", "IVF32,PQ16x4fs,Refine(SQ8)",
    "IVF32,PQ16x4fs,Refine(SQfp16)", "IVF32_HNSW8,PQ16x4fs,Refine(SQ8)", "PCA24,IVF32,Flat", "IVF32,PQ16x4",
]  # fmt: skip


@pytest.mark.parametrize("factory", FACTORIES)
def test_shards_of_one_trained_index_answer_as_one_that_was_filled_at_once(
    vectors: ArrayVectors, queries: Float32, storage: Storage, factory: str
) -> None:
    easy = settings(factory, ROWS).model_copy(update={"ann_recall": 0.2})
    whole = build(vectors, easy, queries, storage=storage)
    trained = Trained(PATH, whole.manifest.base.trained, 0)
    cut = build(vectors, easy.model_copy(update={"shard_rows": 1_000}), queries, trained, storage)
    assert len(whole.manifest.segments) == 1
    assert [s.rows for s in cut.manifest.segments] == [900, 900, 900, 900, 400]
    assert len(cut.index.segments) == 1, "they answer together"
    assert cut.manifest.ann_recall_at_10 == pytest.approx(whole.manifest.ann_recall_at_10, abs=0.01)
    for nprobe in (1, 5, 32):
        for built in (whole, cut):
            built.operate({"nprobe": nprobe} if "IVF" in factory else {})
        found, scores = cut.index.search(queries, 20)
        want, want_scores = whole.index.search(queries, 20)
        np.testing.assert_array_equal(found, want)
        np.testing.assert_allclose(scores, want_scores, atol=1e-6)
    assert cut.index.ids().equals(whole.index.ids())


def test_graphs_are_searched_side_by_side(
    vectors: ArrayVectors, queries: Float32, storage: Storage
) -> None:
    built = build(vectors, settings("HNSW16"), queries, storage=storage)
    assert len(built.index.segments) == len(built.manifest.segments) == 5
    measured = ann_recall(built.index, queries, *exact_search(vectors, queries, EXACT_K))
    assert measured.mean() == built.manifest.ann_recall_at_10 >= 0.9


@pytest.mark.parametrize("factory", ["IVF32,Flat", "HNSW8", "Flat", "IVF32,PQ16x4fs,Refine(SQ8)"])
def test_recall_that_shards_measured_is_that_of_the_index_that_serves(
    vectors: ArrayVectors, queries: Float32, storage: Storage, factory: str
) -> None:
    built = build(vectors, settings(factory), queries, storage=storage)
    measured = ann_recall(built.index, queries, *exact_search(vectors, queries, EXACT_K))
    # Of the candidates of each shard, those that the other shards displace are left out.
    assert built.manifest.ann_recall_at_10 == pytest.approx(measured.mean(), abs=0.005)


@given(rows=st.lists(st.integers(1, 50), min_size=1, max_size=60), most=st.integers(1, 400))
def test_every_fragment_is_in_one_shard_and_no_shard_is_too_large(
    rows: list[int], most: int
) -> None:
    fragments = [(5 * n + 2, count) for n, count in enumerate(rows)]
    shards = cut_into_shards(fragments, most)
    assert [f for shard in shards for f in shard] == [f for f, _ in fragments]
    held = dict(fragments)
    assert all(sum(held[f] for f in s) <= most or len(s) == 1 for s in shards)
    assert all(shards)
    filled = 1 + sum(1 for _ in greedy(rows, most))
    assert len(shards) == filled
    largest = max(sum(held[f] for f in s) for s in shards)
    assert (
        largest == 1
        or largest == max(rows)
        or 1 + sum(1 for _ in greedy(rows, largest - 1)) > filled
    )


def greedy(rows: list[int], most: int) -> Iterator[int]:
    """Yield where the next shard begins, if each is filled before it."""
    held = 0
    for n, count in enumerate(rows):
        if n and held + count > most:
            yield n
            held = 0
        held += count


def test_no_shard_is_a_sliver() -> None:
    units = [(n, 5_952) for n in range(1_344)]
    shards = cut_into_shards([*units, (1_344, 512)], 4_000_000)
    assert [len(shard) for shard in shards] == [448, 448, 449]


def test_a_build_that_was_killed_goes_on_with_the_shards_that_it_has(
    vectors: ArrayVectors, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(at: str) -> None:
        def hook(point: str) -> None:
            if point == at:
                raise Killed

        monkeypatch.setattr(faults, "hook", hook)

    work = Build(storage, PATH, "runs/r/index", vectors, settings())
    kill("index.after_train")
    with pytest.raises(Killed):
        steps.prepare(work, None)
    assert steps.prepared(work) is None
    kill("nowhere")
    first = steps.prepare(work, None)
    steps.fill_shard(work, first, 0)
    for point in ("index.before_save", "index.before_shard"):
        kill(point)
        with pytest.raises(Killed):
            steps.fill_shard(work, first, 1)
    kill("nowhere")
    there = [steps.filled(work, n) is not None for n in range(5)]
    assert there == [True, False, False, False, False]
    with pytest.raises(IntegrityError, match="is gone"):
        steps.finish(work, first, **WHERE)
    for number in range(1, 5):
        steps.fill_shard(work, first, number)
    kill("index.before_manifest")
    with pytest.raises(Killed):
        steps.finish(work, first, **WHERE)
    kill("nowhere")
    index = files.load(storage, PATH, steps.finish(work, first, **WHERE))
    assert index.ids()["row_id"].to_pylist() == vectors.row_ids.tolist()


def test_of_two_that_begin_or_fill_at_once_the_first_one_counts(
    vectors: ArrayVectors, storage: Storage
) -> None:
    work, first = prepared(storage, vectors)
    turned = ArrayVectors(vectors.row_ids, vectors.vectors[::-1].copy(), 300)
    other = dataclasses.replace(work, source=turned)
    assert steps.prepare(other, None) == first
    shard = steps.fill_shard(work, first, 0)
    assert steps.fill_shard(other, first, 0) == shard


def test_builds_of_other_settings_do_not_share_shards(
    vectors: ArrayVectors, storage: Storage
) -> None:
    work, first = prepared(storage, vectors)
    steps.fill_shard(work, first, 0)
    for change in ({"factory": "Flat"}, {"shard_rows": 500}):
        other, again = prepared(storage, vectors, **change)
        assert other.records != work.records
        assert steps.filled(other, 0) is None, change
    assert dataclasses.replace(work, queries=("q",)).records != work.records
    same, again = prepared(storage, vectors, ann_recall=0.95)
    assert (same.records, again) == (work.records, first)


def tampered(work: Build, number: int, **changes: object) -> None:
    proof = steps.filled(work, number)
    assert proof is not None
    path = f"{work.records}/shards/{number:05d}.json"
    work.storage.write(path, encode(dataclasses.replace(proof, **changes)))


def test_shards_that_are_not_the_table_are_refused(vectors: ArrayVectors, storage: Storage) -> None:
    work, first = prepared(storage, vectors)
    shards = [steps.fill_shard(work, first, n) for n in range(5)]
    tampered(work, 1, fragments=shards[0].fragments)
    with pytest.raises(IntegrityError, match="the shards of the index are not the table"):
        steps.finish(work, first, **WHERE)
    tampered(work, 1, fragments=shards[1].fragments, rows=901)
    with pytest.raises(IntegrityError, match="4,001 rows of 14 fragments, the table 4,000 of 14"):
        steps.finish(work, first, **WHERE)
    tampered(work, 1, rows=900)
    storage.remove(shards[3].ids.path(PATH))
    with pytest.raises(IntegrityError, match="is not the file that was built"):
        steps.finish(work, first, **WHERE)
    steps.fill_shard(work, first, 3)
    assert steps.finish(work, first, **WHERE).rows == ROWS


def test_a_table_that_lost_rows_is_refused_by_the_shard_that_reads_them(
    vectors: ArrayVectors, storage: Storage
) -> None:
    class Short(ArrayVectors):
        def batches(self, fragments: Sequence[int] | None = None):  # type: ignore[no-untyped-def]
            for ids, names, found in super().batches(fragments):
                yield ids[1:], names[1:], found[1:]

    work, first = prepared(storage, vectors)
    short = dataclasses.replace(work, source=Short(vectors.row_ids, vectors.vectors, 300))
    with pytest.raises(IntegrityError, match="900 rows there, but 897 were read"):
        steps.fill_shard(short, first, 0)


def test_an_operating_point_is_chosen_from_all_shards_together(storage: Storage) -> None:
    def shard(first: int, found: list[list[int]]) -> Measured:
        ids = np.array([found], np.int64).transpose(1, 0, 2)
        scores = np.array([[[10.0 - first - i for i in range(len(f))]] for f in found], np.float32)
        exact = np.arange(20, dtype=np.int64)[None]
        exact_scores = 10 - first - np.arange(20, dtype=np.float32)[None]
        points = np.array([[0, v] for v in (1, 2, 4)[: len(found)]], np.int64)
        codes, tops = np.zeros_like(scores), np.empty((len(points), 1, 0), np.float32)
        return Measured(20, "nprobe", False, exact, exact_scores, points, ids, scores, codes, tops)

    ten = list(range(10))
    near = shard(0, [[0, 1, 2, 3, 4, 15, 16, 17, 18, 19], [*ten[:8], 18, 19], ten])
    far = shard(100, [ten])  # none of its vectors is near; its ladder ended at once
    assert choose([near, far], 0.5).operating_point == {"nprobe": 1}
    assert choose([near, far], 0.8).operating_point == {"nprobe": 2}
    assert choose([far, near], 0.81).operating_point == {"nprobe": 4}
    assert choose([near, far], 0.81).recalls.tolist() == [1.0]
    unreachable = choose([shard(0, [[0, 1, *range(12, 20)]])], 0.9)
    assert unreachable.recalls.tolist() == [0.2]
    file = files.put_arrays(storage, PATH, vars(near))
    again = Measured.of(files.get_arrays(storage, PATH, file))
    assert (again.rows, again.knob, again.by_score) == (20, "nprobe", False)
    np.testing.assert_array_equal(again.found_ids, near.found_ids)


def test_ground_truth_of_shards_is_that_of_the_table(
    vectors: ArrayVectors, storage: Storage
) -> None:
    work, first = prepared(storage, vectors, factory="Flat")
    assert CPU.shard_rows == 4_000_000
    for number in range(5):
        steps.fill_shard(work, first, number)
    manifest = steps.finish(work, first, **WHERE)
    assert (manifest.ann_recall_at_10, manifest.ann_recall_lower) == (1.0, 1.0)
    assert random_source(10, 4).fragments() == [(0, 10)]


@pytest.mark.parametrize("ids", [["a", "b", "c"], [1, 2, 3], ["a"], []])
def test_ids_that_wait_for_a_shard_to_be_full_do_not_keep_the_batch_they_came_in(
    ids: list[str | int],
) -> None:
    batch = pa.record_batch({"doc_id": ids})
    came = batch.column("doc_id")
    kept = fill_module._copied(came)
    assert kept.equals(came)
    if ids:
        held = {buffer.address for buffer in came.buffers() if buffer}
        assert not held & {buffer.address for buffer in kept.buffers() if buffer}


def missed(factory: str, target: float, gate: float, catch_up: str = "") -> str:
    """The fix of an index that found 600 of 1,000."""
    tuned = Tuned({"nprobe": 2}, np.full(100, 0.6))
    with pytest.raises(TargetMissed) as refused:
        Target(target, gate, catch_up).require(factory, tuned, "queries", better(factory, target))
    return str(refused.value.fix)


@pytest.mark.parametrize(
    ("factory", "target", "suggested"),
    [
        ("IVF64,PQ16x4fs", 1.0, "index.factory=Flat "),
        ("IVF64,PQ16x4fs", 0.98, "index.factory=IVF64,SQ8 "),
        # Codes that are re-ranked are not what limits it.
        ("IVF64,PQ16x4fs,RFlat", 0.9, "index.factory=Flat "),
        ("IVF64,PQ16x4fs,Refine(SQ8)", 0.9, "index.factory=Flat "),
        ("IVF64,SQ8", 0.98, "index.factory=Flat "),
        ("HNSW32", 0.98, "index.factory=Flat "),
    ],
)
def test_a_target_that_is_missed_is_answered_with_another_kind(factory, target, suggested):
    first, comment = missed(factory, target, 0.5).split("     # ")
    assert first == f"reembed run --set {suggested}".strip()
    assert ("index.factory=Flat" in comment) == ("SQ8" in suggested)
    assert comment.endswith("; --set index.ann_recall=0.6 accepts what was reached")


def test_a_target_that_could_be_lowered_is_said_to_be_below_the_gate():
    said = missed("IVF64,PQ16x4fs", 1.0, 0.95)
    assert said.endswith("accepts what was reached, which is below gate.ann_recall 0.95")


def test_a_catch_up_that_misses_its_target_is_not_answered_with_what_only_a_rebuild_can_change():
    said = missed("IVF64,Flat", 0.9, 0.5, "reembed catch-up r")
    command, comment = said.split("     # ")
    assert command == "reembed catch-up r --set index.ann_recall=0.6"
    assert comment == (
        "accepts what was reached; only a rebuild changes the kind of an index:"
        " reembed run --set index.factory=Flat"
    )
