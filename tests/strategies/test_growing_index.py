"""A catch-up's index is its base's with a delta and tombstones, and answers as one that was filled at once."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from crash.killed import killed_once
from inline import Inline, Silent

from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.releases import Catalog
from reembed.cli.progress import words
from reembed.config.settings import Config
from reembed.engine.executor import ONE_CPU
from reembed.errors import IntegrityError
from reembed.events import Indexed, Notice
from reembed.index import build as index_build
from reembed.index import files as index_store
from reembed.index import grow as growing
from reembed.index import held as held_ids
from reembed.index.exact import exact_search
from reembed.index.target import TargetMissed
from reembed.lifecycle.promote import follow, promote
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild
from reembed.table.read import TableVersion, grown

FACTORIES = ("Flat", "IVF8,Flat", "IVF8,PQ4x4fs,Refine(SQ8)", "HNSW16")
DOCUMENTS = 1_000


def row(n: int, text: str) -> dict[str, str]:
    return {"doc_id": f"d{n:05d}", "text": text}


def change(uri: str, step: int, documents: int) -> None:
    """Other texts, new documents, and some that go; spread over the fragments."""
    changed = [
        row(n, f"step {step} of {n}") for n in range(step, DOCUMENTS, DOCUMENTS // documents)
    ]
    # No two texts of the same words: their scores would be equal.
    added = [row(10_000 * step + n, f"new in step {step}: {10 * step + n}") for n in range(3)]
    merge = lance.dataset(uri).merge_insert("doc_id").when_matched_update_all()
    merge.when_not_matched_insert_all().execute(pa.Table.from_pylist([*changed, *added]))
    lance.dataset(uri).delete(f"doc_id IN ('d{900 + step:05d}', 'd{500 + step:05d}')")


class Place:
    """A source, its root, and the releases of one line."""

    def __init__(self, folder: Path, factory: str, kind: str = "faiss", **index: int) -> None:
        self.uri = str(folder / "source.lance")
        rows = [row(n, f"the text of {n}") for n in range(DOCUMENTS)]
        lance.write_dataset(pa.Table.from_pylist(rows), self.uri, max_rows_per_file=250)
        self.root = str(folder / "root")
        self.config = Config(
            alias="a",
            source={"uri": self.uri},
            encoder={"model": "hashing:16"},
            embed={"unit_documents": 100},
            index={"kind": kind, "factory": factory, "ann_recall": 0.5, **index},
            storage={"root": self.root},
        )
        self.storage = Storage.open(self.root)
        self.release = full_rebuild(self.config, Silent(), executor=Inline())

    def catch_up(self):
        self.release = catch_up(self.config, self.release, Silent(), executor=Inline())
        return self.release

    def manifest(self):
        return read_manifest(self.storage, self.release.index, self.release.index_sha256)

    def table(self):
        of = self.release
        return TableVersion(self.storage, of.table, of.table_version, of.space.dim)

    def index(self):
        return index_store.load(self.storage, self.release.index, self.manifest())

    def held(self):
        """Row id and document id of every row that a search of the index can find."""
        ids = self.index().ids()
        return set(zip(ids["row_id"].to_pylist(), ids["doc_id"].to_pylist(), strict=True))

    def positions(self):
        """The row ids at all positions, dead ones too, and the tombstones."""
        at = (self.storage, self.release.index, Path(self.root).parent)
        manifest = self.manifest()
        ids = [index_store.row_ids_of(at, s) for s in manifest.segments]
        return np.concatenate(ids), index_store.tombstones_of(at, manifest)

    def rows(self):
        found = self.table().dataset().scanner(columns=["doc_id"], with_row_id=True).to_table()
        return set(zip(found["_rowid"].to_pylist(), found["doc_id"].to_pylist(), strict=True))


def answers(place: Place, index) -> list[list[str]]:
    """The documents that a search finds, best first, by queries that are vectors of the table."""
    queries = place.table().sample(40, seed=7)
    positions, _ = index.nearest(queries, 10)
    return [index.doc_ids(found[found >= 0]) for found in positions]


def recall(place: Place, index) -> float:
    """The share of the true ten best that a search finds."""
    queries = place.table().sample(40, seed=7)
    by_row = dict(place.rows())
    exact, _ = exact_search(place.table(), queries, 10)
    true = [{by_row[r] for r in rows} for rows in exact.tolist()]
    found = answers(place, index)
    return float(np.mean([len(t & set(f)) / 10 for t, f in zip(true, found, strict=True)]))


@pytest.mark.parametrize("factory", FACTORIES)
def test_an_index_that_grew_holds_the_table_and_answers_as_one_filled_at_once(
    factory, tmp_path, monkeypatch
):
    place = Place(tmp_path, factory)
    for step in (1, 2, 3):
        change(place.uri, step, 10)
        before = place.manifest()
        shutil.copytree(place.root, tmp_path / "other", dirs_exist_ok=True)
        start = place.release
        place.catch_up()
        manifest = place.manifest()
        assert [s.kind for s in manifest.segments] == ["base", *["delta"] * step]
        assert manifest.segments[: len(before.segments)] == before.segments
        assert manifest.tombstones.rows > (before.tombstones.rows if before.tombstones else 0)
        assert place.held() == place.rows()
        assert place.release.verify.passed

        with monkeypatch.context() as at_once:
            at_once.setattr(growing, "FOLD_ABOVE", -1)
            root = str(tmp_path / "other")
            storage = {"root": root}
            config = place.config.model_copy(
                update={"storage": place.config.storage.model_copy(update=storage)}
            )
            whole = catch_up(config, start, Silent(), executor=Inline())
        shutil.rmtree(root + "/lines", ignore_errors=True)
        other = Storage.open(root)
        filled = read_manifest(other, whole.index, whole.index_sha256)
        assert [s.kind for s in filled.segments] == ["base"]
        assert filled.base.trained == manifest.base.trained
        at_once_index = index_store.load(other, whole.index, filled)
        if factory in ("Flat", "IVF8,Flat"):
            found, expected = answers(place, place.index()), answers(place, at_once_index)
            assert [set(f) for f in found] == [set(e) for e in expected]
        # Codes and graphs find other neighbours once some rows are left out: not fewer of the true ones.
        assert recall(place, place.index()) >= recall(place, at_once_index) - 0.01
        shutil.rmtree(tmp_path / "other")


def test_flat_segments_find_exactly_what_exact_search_finds(tmp_path):
    place = Place(tmp_path, "Flat")
    for step in range(1, 4):
        change(place.uri, step, 10)
        place.catch_up()
    queries = place.table().sample(40, seed=3)
    rows, scores = place.index().search(queries, 10)
    _, exact_scores = exact_search(place.table(), queries, 10)
    np.testing.assert_allclose(scores, exact_scores, atol=1e-5)
    assert set(rows.ravel().tolist()) <= {row_id for row_id, _ in place.rows()}


def test_many_deltas_become_one_and_a_tenth_of_changes_builds_the_index_again(tmp_path):
    place = Place(tmp_path, "IVF8,Flat")
    kinds = []
    for step in range(1, 14):
        change(place.uri, step, 4)
        place.catch_up()
        assert place.held() == place.rows()
        kinds.append(sum(s.kind == "delta" for s in place.manifest().segments))
    assert kinds[:9] == [1, 2, 3, 4, 5, 6, 7, 8, 1]
    assert 0 in kinds, "never built again"


@pytest.mark.parametrize("point", ["index.before_delta", "index.before_grown"])
def test_deltas_whose_merging_is_killed_become_one_and_no_row_is_doubled(
    point, tmp_path, monkeypatch
):
    place = Place(tmp_path, "IVF8,Flat")
    for step in range(1, 9):
        change(place.uri, step, 4)
        place.catch_up()
    assert [s.kind for s in place.manifest().segments] == ["base"] + ["delta"] * 8
    change(place.uri, 9, 4)
    killed_once(monkeypatch, point, place.catch_up)
    assert [s.kind for s in place.manifest().segments] == ["base", "delta"]
    assert place.held() == place.rows()
    assert place.index().rows == len(place.rows())
    assert place.release.verify.passed


def test_a_delta_takes_in_no_more_than_a_shard(tmp_path, monkeypatch):
    """Of a large base many deltas are far from a tenth: they must not build it again."""
    monkeypatch.setattr(growing, "FOLD_ABOVE", 1.0)
    place = Place(tmp_path, "IVF8,Flat", shard_rows=30)
    for step in range(1, 11):
        change(place.uri, step, 4)
        place.catch_up()
        assert place.held() == place.rows()
        kinds = [s.kind for s in place.manifest().segments]
        assert "delta" in kinds, "built again"
    deltas = [s.rows for s in place.manifest().segments if s.kind == "delta"]
    assert len(deltas) < 9
    assert 7 < max(deltas) <= 30


def test_a_change_of_a_fifth_builds_the_index_again(tmp_path):
    place = Place(tmp_path, "IVF8,Flat")
    change(place.uri, 1, 200)
    place.catch_up()
    assert [s.kind for s in place.manifest().segments] == ["base"]
    assert place.manifest().tombstones is None
    assert place.held() == place.rows()


def test_a_catch_up_whose_index_misses_its_target_takes_the_lower_one_that_is_printed(
    tmp_path, monkeypatch
):
    place = Place(tmp_path, "IVF8,Flat")
    honest = index_build.choose

    def fewer(shards, target):
        tuned = honest(shards, target)
        return dataclasses.replace(tuned, recalls=np.full_like(tuned.recalls, 0.25))

    monkeypatch.setattr(index_build, "choose", fewer)
    change(place.uri, 1, 200)
    with pytest.raises(TargetMissed) as missed:
        place.catch_up()
    command, _ = missed.value.fix.split("     # ", 1)
    assert command == f"reembed catch-up {place.release.id} --set index.ann_recall=0.25"
    asked = place.config
    place.config = with_index(asked, ann_recall=0.25)
    place.catch_up()
    assert place.manifest().settings.ann_recall == 0.25
    place.config = asked
    change(place.uri, 2, 200)
    place.catch_up()  # the line goes by it from now on
    assert [s.kind for s in place.manifest().segments] == ["base"]


def test_a_lower_target_leaves_an_index_that_grows_as_it_was_tuned(tmp_path):
    place = Place(tmp_path, "IVF8,Flat")
    before = place.manifest()
    place.config = with_index(place.config, ann_recall=0.2)
    change(place.uri, 1, 5)
    said = []
    place.release = catch_up(place.config, place.release, said.append, executor=Inline())
    assert place.manifest().settings == before.settings
    (told,) = [e.what for e in said if isinstance(e, Notice)]
    assert told.startswith("index.ann_recall is 0.2, and 0.5 in ")


def with_index(config, **index):
    return config.model_copy(update={"index": config.index.model_copy(update=index)})


class Counting(Inline):
    """Keeps the memory that each call asks for."""

    def __init__(self):
        self.asked = {}

    def call(self, function, *args, needs=ONE_CPU):
        self.asked[function.__name__] = needs.memory
        return super().call(function, *args, needs=needs)


def test_more_new_rows_than_a_shard_may_have_become_several_deltas(tmp_path, monkeypatch):
    place = Place(tmp_path, "IVF8,Flat")
    monkeypatch.setattr(growing, "FOLD_ABOVE", 10)
    place.config = place.config.model_copy(
        update={"index": place.config.index.model_copy(update={"shard_rows": 300})}
    )
    place.release = full_rebuild(place.config, Silent(), executor=Inline(), fresh=True)
    deltas, executor = [], Counting()
    for step, documents in ((1, 5), (2, 333)):
        change(place.uri, step, documents)
        place.release = catch_up(place.config, place.release, Silent(), executor=executor)
        deltas.append([s.rows for s in place.manifest().segments if s.kind == "delta"])
        assert place.held() == place.rows()
    assert deltas[0] == deltas[1][:1]
    assert len(deltas[1]) > 2
    assert max(deltas[1]) <= 300
    assert executor.asked["_grow_task"] > 256 * 2**20


def test_only_deletions_add_no_segment(tmp_path):
    place = Place(tmp_path, "IVF8,Flat")
    lance.dataset(place.uri).delete("doc_id IN ('d00003', 'd00333')")
    place.catch_up()
    manifest = place.manifest()
    assert [s.kind for s in manifest.segments] == ["base"]
    assert manifest.tombstones.rows == 2
    assert place.held() == place.rows()


def test_the_files_of_the_base_are_shared_and_gc_of_it_leaves_them(tmp_path):
    place = Place(tmp_path, "IVF8,Flat")
    first = place.release
    change(place.uri, 1, 5)
    place.catch_up()
    place.storage.delete_tree(f"{first.index}/")
    assert place.held() == place.rows()


def test_what_a_catch_up_adds_is_hashed_and_what_live_serves_is_not(tmp_path, monkeypatch):
    place = Place(tmp_path, "IVF8,Flat", shard_rows=250)
    catalog = Catalog(place.storage, "a")
    promote(catalog, place.release.id, initial_reason="a test")
    base = {name for s in place.manifest().segments for name in (s.vectors.sha256, s.ids.sha256)}
    change(place.uri, 1, 5)
    honest, hashed, tombs = Storage.digest, [], []

    def digest(storage, path):
        hashed.append(path)
        return honest(storage, path)

    monkeypatch.setattr(Storage, "digest", digest)
    read = held_ids.tombstones_of
    monkeypatch.setattr(held_ids, "tombstones_of", lambda *a: tombs.append(a) or read(*a))
    follow(catalog, place.catch_up())
    (*shards, delta) = place.manifest().segments
    assert len(shards) == 5
    assert any(delta.vectors.sha256 in path for path in hashed)
    assert not [path for path in hashed if any(name in path for name in base)]
    assert len(tombs) == 5, "twice for each index and once for the delta; not for each segment"
    path = shards[0].vectors.path(place.release.index)
    place.storage.write_bytes(path, place.storage.read_bytes(path)[:-1])
    change(place.uri, 2, 5)
    with pytest.raises(IntegrityError, match="is incomplete"):
        follow(catalog, place.catch_up())


def test_the_output_tells_of_files_that_the_store_does_not_copy(tmp_path, monkeypatch):
    place = Place(tmp_path, "IVF8,Flat")
    monkeypatch.setattr(index_store, "COPY_BYTES", place.manifest().base.vectors.size_bytes - 1)
    said = {}
    for step, remote in ((1, False), (2, True)):
        monkeypatch.setattr(index_store, "is_remote", lambda uri, remote=remote: remote)
        change(place.uri, step, 5)
        events = []
        place.release = catch_up(place.config, place.release, events.append, executor=Inline())
        said[remote] = [e.what for e in events if isinstance(e, Notice)]
    assert said[False] == []
    (notice,) = said[True]
    assert notice.startswith("1 of 8 files of the index are larger than 5 GiB")
    assert place.held() == place.rows()


def test_an_index_of_another_table_version_does_not_grow(tmp_path, monkeypatch):
    place = Place(tmp_path, "IVF8,Flat")
    first, table = place.release, place.table()
    change(place.uri, 1, 5)
    place.catch_up()
    found = grown(table, place.table())
    assert len(found.left)
    assert found.added
    catalog = Catalog(place.storage, "a")
    assert catalog.release(first.id) == first
    honest = growing._dead

    def fewer(build, older, held, change, *, missing):
        more = replace(change, left=np.append(change.left, 10**9))
        return honest(build, older, held, more, missing=missing)

    monkeypatch.setattr(growing, "_dead", fewer)
    change(place.uri, 2, 5)
    with pytest.raises(IntegrityError, match="is not of the table version that it names"):
        place.catch_up()


def test_tombstones_are_the_places_of_rows_that_the_table_does_not_have(tmp_path):
    place = Place(tmp_path, "IVF8,Flat", shard_rows=250)
    for step in range(1, 11):  # the ninth delta takes in others
        change(place.uri, step, 5)
        place.catch_up()
        (row_ids, tombs), rows = place.positions(), [row for row, _ in place.rows()]
        assert tombs.tolist() == np.flatnonzero(~np.isin(row_ids, rows)).tolist()
        assert len(row_ids) - len(tombs) == len(rows)


def test_ids_are_read_only_of_segments_whose_fragments_lost_rows(tmp_path, monkeypatch):
    place, honest, read = Place(tmp_path, "IVF8,Flat", shard_rows=250), index_store.row_ids_of, []

    def noted(at, segment):
        read.append(segment.ids)
        return honest(at, segment)

    monkeypatch.setattr(growing.files, "row_ids_of", noted)
    lance.write_dataset(pa.Table.from_pylist([row(9_000, "new")]), place.uri, mode="append")
    place.catch_up()
    assert read == []
    *shards, delta = place.manifest().segments
    assert (len(shards), delta.kind) == (5, "delta")
    source = lance.dataset(place.uri)
    source.delete(f"doc_id IN ('{row(0, '')['doc_id']}', '{row(9_000, '')['doc_id']}')")
    place.catch_up()
    assert read == [shards[0].ids, delta.ids]
    assert place.held() == place.rows()


def test_fragments_of_two_versions_are_told_apart_by_their_files(tmp_path):
    place = Place(tmp_path, "Flat")
    before = place.table()
    rows_before = {r for r, _ in place.rows()}
    change(place.uri, 1, 20)
    place.catch_up()
    found = grown(before, place.table())
    rows_after = {r for r, _ in place.rows()}
    assert set(found.left.tolist()) == rows_before - rows_after
    added = [r for f in found.added for r in place.table().row_ids(f).tolist()]
    assert set(added) == rows_after - rows_before
    assert dataclasses.asdict(place.release)["rows"] == len(rows_after)


def test_files_of_deleted_documents_are_written_again_where_that_is_asked_for(tmp_path):
    place = Place(tmp_path, "IVF8,Flat")
    change(place.uri, 1, 5)
    place.catch_up()
    thinned = [f for f in place.table().dataset().get_fragments() if f.metadata.deletion_file]
    assert thinned
    lance.dataset(place.uri).delete("doc_id = 'd00777'")
    storage = place.config.storage.model_copy(update={"erase_deleted": True})
    place.config = place.config.model_copy(update={"storage": storage})
    place.catch_up()
    fragments = place.table().dataset().get_fragments()
    assert not [f for f in fragments if f.metadata.deletion_file]
    assert [s.kind for s in place.manifest().segments] == ["base"]
    assert place.manifest().tombstones is None
    assert place.held() == place.rows()


def test_the_output_tells_a_grown_index_from_one_that_was_built(tmp_path):
    place = Place(tmp_path, "IVF8,Flat")
    change(place.uri, 1, 5)
    told = []
    catch_up(place.config, place.release, told.append, executor=Inline())
    (indexed,) = [words(e) for e in told if isinstance(e, Indexed)]
    assert "in 2 shards" not in indexed
    assert indexed.endswith("documents when it was built, grown by 1 delta and 7 tombstones")
    assert not [e for e in told if "building the index" in str(e)]


def test_lists_on_the_disk_grow_as_those_in_memory(tmp_path):
    found = {}
    for kind in ("faiss", "faiss_ondisk"):
        (tmp_path / kind).mkdir()
        place = Place(tmp_path / kind, "IVF8,PQ4x4fs,Refine(SQ8)", kind)
        change(place.uri, 1, 20)
        release = place.catch_up()
        manifest = read_manifest(place.storage, release.index, release.index_sha256)
        assert [s.kind for s in manifest.segments] == ["base", "delta"]
        index = index_store.load(place.storage, release.index, manifest)
        queries = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
        positions, scores = index.nearest(queries, 5)
        found[kind] = [index.doc_ids(row) for row in positions], scores.tolist()
    assert found["faiss"] == found["faiss_ondisk"]


def reversed_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give vectors the ids of other rows of their segment."""
    put = index_store.put_ids

    def reversed_(storage, path, row_ids, doc_ids):
        return put(
            storage, path, row_ids[::-1].copy(), doc_ids.take(pa.array(range(len(doc_ids))[::-1]))
        )

    monkeypatch.setattr(index_store, "put_ids", reversed_)


@pytest.mark.parametrize("factory", FACTORIES)
def test_vectors_that_got_ids_of_other_rows_are_not_released(factory, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        reversed_ids(patched)
        with pytest.raises(IntegrityError) as refused:
            Place(tmp_path / "built", factory)
    assert "misplaced" in f"{refused.value}{refused.value.why}"


def test_a_delta_whose_vectors_got_ids_of_other_rows_is_not_released(tmp_path, monkeypatch):
    place = Place(tmp_path, "Flat")
    change(place.uri, 1, 20)
    before = place.release
    reversed_ids(monkeypatch)
    with pytest.raises(IntegrityError) as refused:
        place.catch_up()
    assert "misplaced" in f"{refused.value}{refused.value.why}"
    assert place.release == before
