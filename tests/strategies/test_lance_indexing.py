"""Lance's own index: built by segments of one model, grown by deltas, searched where it lies."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from crash.killed import Killed, killed_once
from inline import Inline, Silent
from lance.file import LanceFileReader

from reembed import faults
from reembed.catalog.index_manifest import LanceManifest, read_manifest
from reembed.catalog.releases import Catalog
from reembed.catalog.reports import VECTORS
from reembed.config.settings import Config
from reembed.errors import IntegrityError, UsageError
from reembed.events import Notice
from reembed.index.exact import ann_recall, exact_search
from reembed.index.target import TargetMissed
from reembed.lifecycle import gc
from reembed.lifecycle.held import held_by
from reembed.lifecycle.promote import follow, promote
from reembed.lifecycle.verification import verify_release
from reembed.serving.index import open as open_index
from reembed.serving.live import OpenRelease
from reembed.store.lance import tags_of
from reembed.store.storage import Storage
from reembed.strategies import lance_indexing
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table import vector_index
from reembed.table.read import TableVersion

DOCUMENTS = 3_000


def row(n: int, text: str) -> dict[str, str]:
    return {"doc_id": f"d{n:05d}", "text": text}


class Place:
    """A source, its root, and the releases of one line."""

    def __init__(self, folder: Path, *, documents: int = DOCUMENTS, **index) -> None:
        self.uri = str(folder / "source.lance")
        rows = [row(n, f"the text of {n}") for n in range(documents)]
        lance.write_dataset(pa.Table.from_pylist(rows), self.uri, max_rows_per_file=750)
        self.config = self.built_by(folder, **index)
        self.storage = Storage.open(self.config.storage.root)

    def built_by(self, folder: Path, **index) -> Config:
        return Config(
            alias="a",
            source={"uri": self.uri},
            encoder={"model": "hashing:32"},
            embed={"unit_documents": 500},
            index={"kind": "lance", "ann_recall": 0.8, "shard_rows": 1_000, **index},
            storage={"root": str(folder / "root")},
        )

    def build(self):
        self.release = full_rebuild(self.config, Silent(), executor=Inline())
        return self.release

    def catch_up(self):
        self.release = catch_up(self.config, self.release, Silent(), executor=Inline())
        return self.release

    def manifest(self) -> LanceManifest:
        found = read_manifest(self.storage, self.release.index, self.release.index_sha256)
        assert isinstance(found, LanceManifest)
        return found

    def table(self) -> TableVersion:
        of = self.release
        return TableVersion(self.storage, of.table, of.table_version, of.space.dim)

    def opened(self) -> OpenRelease:
        return OpenRelease.open(self.storage, self.release)

    def held(self) -> list[tuple[int, str]]:
        """Row id and document id of every row that a search of the index can find, by segment."""
        held = held_by(self.table(), self.release.index, self.manifest())
        found = [b for n in range(held.segments) for b in held.batches(n)]
        return [
            pair
            for _, rows, names in found
            for pair in zip(rows.tolist(), names.to_pylist(), strict=True)
        ]

    def rows(self) -> set[tuple[int, str]]:
        found = self.table().dataset().scanner(columns=["doc_id"], with_row_id=True).to_table()
        return set(zip(found["_rowid"].to_pylist(), found["doc_id"].to_pylist(), strict=True))

    def recall(self) -> float:
        queries = self.table().sample(50, seed=3)
        exact = exact_search(self.table(), queries, 40)
        return float(ann_recall(self.opened().index, queries, *exact).mean())


@pytest.mark.parametrize(
    ("factory", "named"),
    [("auto", "IVF1_FLAT"), ("IVF8_PQ", "IVF8_PQ8"), ("IVF8_RQ", "IVF8_RQ"), ("IVF8_FLAT", None)],
)
def test_a_release_is_built_verified_promoted_and_searched(factory, named, tmp_path):
    place = Place(tmp_path, factory=factory)
    release = place.build()
    manifest = place.manifest()
    assert manifest.factory == (named or factory)
    assert len(manifest.segments) == 3
    assert release.table_version == manifest.table_version > manifest.sealed_version
    assert release.verify.passed
    assert sorted(place.held()) == sorted(place.rows())
    assert place.recall() >= manifest.ann_recall_at_10 - 0.1 >= 0.7
    promote(Catalog(place.storage, "a"), release.id, initial_reason="a test")
    with open_index(place.config.storage.root, "a") as index:
        ((hit,), (other,)) = index.search(["the text of 17", "the text of 2900"], k=1)
        assert (hit.doc_id, other.doc_id) == ("d00017", "d02900")
        assert hit.score == pytest.approx(1, abs=1e-5)
        vector = 3 * index.current.encode_queries(["the text of 5"])
        assert index.search(vector, k=1)[0][0].score == pytest.approx(3, abs=1e-4)
        assert index.search([], k=3) == []
        assert not index.refresh()


def change(uri: str, step: int, every: int) -> None:
    """Other texts, new documents, and some that go; spread over the fragments."""
    changed = [row(n, f"step {step} of {n}") for n in range(step, DOCUMENTS, every)]
    added = [row(10_000 * step + n, f"new in step {step}: {n}") for n in range(5)]
    merge = lance.dataset(uri).merge_insert("doc_id").when_matched_update_all()
    merge.when_not_matched_insert_all().execute(pa.Table.from_pylist([*changed, *added]))
    lance.dataset(uri).delete(f"doc_id IN ('d{900 + step:05d}', 'd{500 + step:05d}')")


def best(place: Place, text: str) -> str:
    return place.opened().search([text], 1)[0][0].doc_id


@pytest.mark.parametrize("factory", ["IVF8_PQ", "IVF8_FLAT"])
def test_a_catch_up_adds_a_segment_of_the_same_model_and_finds_neither_deleted_nor_old_rows(
    factory, tmp_path
):
    place = Place(tmp_path, factory=factory)
    first = place.build()
    before = place.manifest()
    for step in (1, 2):
        change(place.uri, step, every=300)
        release = place.catch_up()
        manifest = place.manifest()
        assert [s.kind for s in manifest.segments] == ["base"] * 3 + ["delta"] * step
        assert manifest.segments[:3] == before.segments
        assert (manifest.model, manifest.operating_point) == (before.model, before.operating_point)
        assert manifest.buried > 0
        assert release.verify.passed
        assert 14 <= release.verify.new_rows <= 15, "only what is new was compared"
        assert sorted(place.held()) == sorted(place.rows())
        assert best(place, f"step {step} of {step}") == f"d{step:05d}"
        assert best(place, f"new in step {step}: 3") == f"d{10_000 * step + 3:05d}"
        gone = {f"d{900 + step:05d}", f"d{500 + step:05d}"}
        hits = place.opened().search([f"the text of {900 + step}", f"the text of {step}"], 50)
        assert not gone & {h.doc_id for found in hits for h in found}
        assert all(len({h.doc_id for h in found}) == len(found) == 50 for found in hits)
        assert place.recall() >= before.ann_recall_at_10 - 0.1
    old = OpenRelease.open(place.storage, first)
    assert old.search(["the text of 901"], 1)[0][0].doc_id == "d00901", "the first is as it was"


def test_a_catch_up_hashes_only_the_segment_that_it_adds(tmp_path, monkeypatch):
    place = Place(tmp_path, factory="IVF8_FLAT")
    place.build()
    old = {s.uuid for s in place.manifest().segments}
    change(place.uri, 1, every=300)
    honest, hashed = Storage.digest, []

    def digest(storage, path):
        hashed.append(path)
        return honest(storage, path)

    monkeypatch.setattr(Storage, "digest", digest)
    place.catch_up()
    (new,) = {s.uuid for s in place.manifest().segments} - old
    named = {uuid for path in hashed for uuid in (*old, new) if uuid in path}
    assert named == {new}
    verify_release(
        Catalog(place.storage, "a"),
        place.release.id,
        level=VECTORS,
        sample=9,
        resume=False,
        stall_s=60,
    )
    assert {uuid for path in hashed for uuid in (*old, new) if uuid in path} == {*old, new}


def test_above_a_tenth_of_changed_rows_the_index_is_built_again(tmp_path):
    place = Place(tmp_path, factory="IVF8_PQ")
    place.build()
    model = place.manifest().model
    change(place.uri, 1, every=8)
    place.catch_up()
    manifest = place.manifest()
    assert {s.kind for s in manifest.segments} == {"base"}
    assert manifest.model == model, "most vectors are those that it was trained on"
    assert manifest.buried == 0
    assert sorted(place.held()) == sorted(place.rows())


def test_a_search_for_more_than_its_lists_hold_finds_k_rows(tmp_path):
    place = Place(tmp_path, factory="IVF64_PQ", shard_rows=10_000)
    place.build()
    lance.dataset(place.uri).delete("doc_id < 'd00100'")
    place.catch_up()
    nprobe = place.manifest().operating_point["nprobe"]
    assert nprobe < 32
    queries = place.table().sample(5, seed=1)
    for k in (2_000, DOCUMENTS):
        found, scores = place.opened().index.search(queries, k)
        most = min(k, DOCUMENTS - 100)
        assert all(len(set(row[:most].tolist())) == most for row in found)
        assert (found[:, :most] >= 0).all()
        assert (found[:, most:] == -1).all()
        assert (np.diff(scores[:, :most]) <= 1e-6).all()


def test_documents_that_only_left_need_no_new_segment(tmp_path):
    place = Place(tmp_path, factory="IVF8_FLAT")
    place.build()
    lance.dataset(place.uri).delete("doc_id IN ('d00017', 'd02000')")
    place.catch_up()
    assert [s.kind for s in place.manifest().segments] == ["base"] * 3
    assert place.manifest().buried == 2
    assert best(place, "the text of 17") != "d00017"
    assert place.release.verify.passed


def test_the_ninth_delta_takes_in_the_eight_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr("reembed.index.grow.DELTAS", 2)
    place = Place(tmp_path, factory="IVF8_PQ")
    place.build()
    deltas = []
    for step in (1, 2, 3, 4):
        change(place.uri, step, every=1_000)
        place.catch_up()
        deltas.append(sum(s.kind == "delta" for s in place.manifest().segments))
        assert sorted(place.held()) == sorted(place.rows())
        assert place.release.verify.passed
    assert deltas == [1, 2, 1, 2]


def test_a_new_delta_takes_in_no_more_than_a_segment_may_have(tmp_path, monkeypatch):
    """Deltas that are more than that together are no reason to build the index again."""
    monkeypatch.setattr("reembed.index.grow.DELTAS", 2)
    place = Place(tmp_path, documents=1_000, factory="IVF4_FLAT", shard_rows=50)
    place.build()
    deltas = []
    for step in (1, 2, 3):
        change(place.uri, step, every=200)
        place.catch_up()
        deltas.append([s.rows for s in place.manifest().segments if s.kind == "delta"])
        assert sorted(place.held()) == sorted(place.rows())
        assert place.release.verify.passed
    assert deltas == [[20], [20, 20], [20, 40]]


@pytest.mark.parametrize(("documents", "hot"), [(DOCUMENTS, "d00017"), (2_001, "d02000")])
def test_a_document_that_changes_again_and_again_stays_a_delta_of_one_row(documents, hot, tmp_path):
    """Its older deltas have no live row, nor has its base segment if it was alone there."""
    place = Place(tmp_path, documents=documents, factory="IVF8_FLAT")
    place.build()
    base = [s for s in place.manifest().segments if s.rows > 1]
    alone = len(base) < len(place.manifest().segments)
    assert alone == (hot == "d02000")
    catalog = Catalog(place.storage, "a")
    promote(catalog, place.release.id, initial_reason="a test")
    for step in (1, 2, 3, 4):
        merge = lance.dataset(place.uri).merge_insert("doc_id").when_matched_update_all()
        merge.execute(pa.Table.from_pylist([{"doc_id": hot, "text": f"hot {step}"}]))
        follow(catalog, place.catch_up())
        *kept, delta = place.manifest().segments
        assert kept == base
        assert (delta.kind, delta.rows) == ("delta", 1)
        assert place.manifest().buried == (not alone)
        assert place.release.verify.passed
        assert place.release.verify.new_rows == 1, "only what is new was compared"
        assert sorted(place.held()) == sorted(place.rows())
        assert best(place, f"hot {step}") == hot
    collected(place)


def test_a_base_segment_without_live_rows_is_left_out(tmp_path):
    place = Place(tmp_path, documents=2_100, factory="IVF8_FLAT")
    place.build()
    *kept, last = place.manifest().segments
    assert 0 < last.rows < 210
    lance.dataset(place.uri).delete(f"doc_id >= 'd{2_100 - last.rows:05d}'")
    place.catch_up()
    assert place.manifest().segments == tuple(kept)
    assert place.manifest().buried == 0
    assert place.release.verify.passed
    assert sorted(place.held()) == sorted(place.rows())


def test_an_index_that_cannot_grow_is_built_again_and_the_output_says_why(tmp_path, monkeypatch):
    place = Place(tmp_path, factory="IVF8_FLAT")
    place.build()
    change(place.uri, 1, every=300)
    honest, asked, emitted = vector_index.segments_of, [], []

    def nothing_at_first(dataset):
        asked.append(dataset.version)
        return honest(dataset) if asked[1:] else {}

    monkeypatch.setattr(vector_index, "segments_of", nothing_at_first)
    place.release = catch_up(place.config, place.release, emitted.append, executor=Inline())
    assert {s.kind for s in place.manifest().segments} == {"base"}
    (why,) = [e.what for e in emitted if isinstance(e, Notice)]
    assert why.startswith("the index is built again: version ")
    assert why.endswith(" does not name 3 of its 3 segments")


def test_all_segments_have_one_model(tmp_path):
    """Without it Lance trains one for each segment, each on too few rows."""
    place = Place(tmp_path, factory="IVF8_PQ")
    release = place.build()
    change(place.uri, 1, every=300)
    place.catch_up()
    files = [p for p in place.manifest().stored(release.index) if p.endswith("auxiliary.idx")]
    readers = [LanceFileReader(place.storage.uri(p)) for p in files]
    said = [r.metadata().schema.metadata[b"storage_metadata"] for r in readers]
    assert len(files) == 4
    assert len(set(said)) == 1
    assert b'codebook_position\\":2' in said[0]
    codebooks = {bytes(r._reader.read_global_buffer(2)) for r in readers}
    assert len(codebooks) == 1
    assert len(codebooks.pop()) >= 256 * 32 * 4


def test_a_target_that_cannot_be_reached_is_refused_and_another_kind_reaches_it(tmp_path):
    place = Place(tmp_path, factory="IVF4_PQ1", ann_recall=1.0)
    with pytest.raises(TargetMissed, match="IVF4_PQ1 does not reach") as missed:
        place.build()
    fix = str(missed.value.fix)
    assert fix.startswith(
        "reembed run --set index.kind=lance --set index.factory=IVF_FLAT     # whole vectors; "
    )
    assert "--set index.ann_recall=0.9" in fix
    place.config = place.built_by(tmp_path, factory="IVF8_FLAT", ann_recall=0.9)
    place.build()
    assert place.manifest().factory == "IVF8_FLAT"
    assert len(place.table().dataset().describe_indices()[0].segments) == 3
    assert sorted(place.held()) == sorted(place.rows())


@pytest.mark.parametrize("factory", ["IVF64,Flat", "HNSW32", "IVF_PQ5", "IVF_HNSW_SQ"])
def test_a_factory_that_lance_cannot_make_is_refused_before_embedding(factory, tmp_path):
    place = Place(tmp_path, documents=50, factory=factory)
    with pytest.raises(UsageError, match=r"does not fit index\.kind lance"):
        place.build()
    assert not list(place.storage.objects("tables/"))


POINTS = (
    "index.after_train",
    "index.before_proof",
    "index.before_shard",
    "index.before_commit",
    "index.after_commit",
    "index.before_manifest",
)


@pytest.mark.parametrize("point", POINTS)
def test_a_build_that_is_killed_goes_on_and_doubles_nothing(point, tmp_path, monkeypatch):
    place = Place(tmp_path, factory="IVF8_PQ")
    killed_once(monkeypatch, point, place.build)
    assert place.release.verify.passed
    assert sorted(place.held()) == sorted(place.rows())
    assert len(place.rows()) == DOCUMENTS
    assert place.recall() >= 0.7


@pytest.mark.parametrize(
    "point", ["index.before_delta", "index.before_commit", "index.before_grown"]
)
def test_a_growing_index_that_is_killed_goes_on_and_doubles_nothing(point, tmp_path, monkeypatch):
    place = Place(tmp_path, factory="IVF8_PQ")
    place.build()
    change(place.uri, 1, every=300)
    killed_once(monkeypatch, point, place.catch_up)
    assert [s.kind for s in place.manifest().segments] == ["base"] * 3 + ["delta"]
    assert sorted(place.held()) == sorted(place.rows())
    assert place.release.verify.passed


def test_another_run_that_commits_between_seal_and_index_changes_nothing(tmp_path, monkeypatch):
    place = Place(tmp_path, factory="IVF8_FLAT")
    met = []

    def restore(name: str) -> None:
        if name == "index.before_commit" and not met:
            met.append(name)
            (path,) = {p.split(".lance")[0] + ".lance" for p, _ in place.storage.objects("tables/")}
            lance.dataset(place.storage.uri(path), version=1).restore()

    monkeypatch.setattr(faults, "point", restore)
    place.build()
    assert met
    assert place.release.verify.passed
    assert sorted(place.held()) == sorted(place.rows())


def collected(place: Place) -> None:
    """Let gc keep nothing but the release of the place, and check that it left no other index."""
    catalog = Catalog(place.storage, "a")
    gc.apply(catalog, gc.plan(catalog, 1), 1)
    folder = f"{place.release.table}/_indices/"
    left = {p.removeprefix(folder).split("/")[0] for p, _ in place.storage.objects(folder)}
    assert left == {s.uuid for s in place.manifest().segments}
    assert list(tags_of(place.table().dataset())) == [place.release.table_tag]
    assert not gc.plan(catalog, 1).trim
    again = {"level": VECTORS, "sample": 20, "resume": False, "stall_s": 60}
    assert verify_release(catalog, place.release.id, **again).report.passed
    assert sorted(place.held()) == sorted(place.rows())


def test_gc_removes_the_old_index_after_a_catch_up_that_erases_and_the_release_still_grows(
    tmp_path,
):
    place = Place(tmp_path, factory="IVF8_FLAT")
    storage = place.config.storage.model_copy(update={"erase_deleted": True})
    place.config = place.config.model_copy(update={"storage": storage})
    place.build()
    catalog = Catalog(place.storage, "a")
    promote(catalog, place.release.id, initial_reason="a test")
    lance.dataset(place.uri).delete("doc_id = 'd00017'")
    follow(catalog, place.catch_up())
    collected(place)
    change(place.uri, 1, every=300)
    follow(catalog, place.catch_up())
    collected(place)
    assert best(place, "step 1 of 1") == "d00001"


def test_gc_removes_an_index_that_missed_its_target_and_was_built_again(tmp_path, monkeypatch):
    place = Place(tmp_path, factory="IVF8_PQ")
    place.build()
    catalog = Catalog(place.storage, "a")
    promote(catalog, place.release.id, initial_reason="a test")
    change(place.uri, 1, every=8)
    tuned, missed = lance_indexing._tuned, []

    def miss_once(job, *given):
        if not missed:
            missed.append(job)
            raise TargetMissed("IVF8_PQ does not reach it", None, "a test")
        return tuned(job, *given)

    monkeypatch.setattr(lance_indexing, "_tuned", miss_once)
    follow(catalog, place.catch_up())
    assert missed
    assert len(tags_of(place.table().dataset())) == 5, (
        "sealed and indexed; the second indexed twice"
    )
    collected(place)


def test_gc_leaves_the_tags_of_an_unfinished_run(tmp_path, monkeypatch):
    place = Place(tmp_path, factory="IVF8_FLAT")
    place.build()
    catalog = Catalog(place.storage, "a")
    promote(catalog, place.release.id, initial_reason="a test")
    change(place.uri, 1, every=8)

    def die(name: str) -> None:
        if name == "index.before_manifest":
            raise Killed(name)

    with monkeypatch.context() as patch:
        patch.setattr(faults, "point", die)
        with pytest.raises(Killed):
            place.catch_up()
    before = tags_of(place.table().dataset())
    gc.apply(catalog, gc.plan(catalog, 1), 1)
    assert tags_of(place.table().dataset()) == before
    follow(catalog, place.catch_up())
    collected(place)


def test_damaged_files_of_the_index_are_found_and_cut_ones_are_not_opened(tmp_path):
    place = Place(tmp_path, factory="IVF8_PQ")
    release = place.build()
    named = [p for p in place.manifest().stored(release.index) if p.endswith("auxiliary.idx")]
    path = Path(place.storage.uri(named[1]))
    body = path.read_bytes()
    path.write_bytes(body[:200] + bytes([body[200] ^ 1]) + body[201:])
    with pytest.raises(IntegrityError, match="is not the index that was saved"):
        place.held()
    with pytest.raises(IntegrityError, match="is incomplete"):
        promote(Catalog(place.storage, "a"), release.id, initial_reason="a test")
    path.write_bytes(body[:-1])
    with pytest.raises(IntegrityError, match="is not the index that was saved"):
        place.opened()
