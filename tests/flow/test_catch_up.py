"""Documents that come, change and go while a run is under way, and after it, all end up right."""

from __future__ import annotations

import shutil

import lance
import pyarrow as pa
import pytest
from conftest import documents
from flow_tables import rows_of
from inline import Inline

from reembed import api
from reembed.catalog.releases import Catalog
from reembed.digests import digest
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import SourceError
from reembed.events import ChangesFound
from reembed.lifecycle.promote import promote
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


def catalog_of(config):
    return Catalog(Storage.open(config.storage.root), config.alias)


def source_of(tmp_path, *, stable: bool) -> str:
    uri = str(tmp_path / f"source-{stable}.lance")
    lance.write_dataset(
        pa.Table.from_pylist(documents(300, 0)),
        uri,
        enable_stable_row_ids=stable,
        max_rows_per_file=120,
    )
    return uri


def upsert(uri: str, rows: list[tuple[str, str, str]]) -> None:
    table = pa.Table.from_pylist([{"doc_id": d, "title": t, "text": x} for d, t, x in rows])
    merge = lance.dataset(uri).merge_insert("doc_id")
    merge.when_matched_update_all().when_not_matched_insert_all().execute(table)


def change(uri: str) -> None:
    """Every kind of change that a table of documents sees."""
    before = {d["doc_id"]: d for d in documents(300, 0)}
    upsert(uri, [("d00003", "t", "another text"), ("new-1", "t", "a new document")])
    lance.dataset(uri).delete("doc_id in ('d00001', 'd00002', 'd00250')")
    same = before["d00004"]
    upsert(uri, [("d00004", same["title"], same["text"])])  # an update that changes nothing
    upsert(uri, [("d00005", "t", "B")])
    upsert(uri, [("d00005", before["d00005"]["title"], before["d00005"]["text"])])  # A-B-A
    back = before["d00002"]
    upsert(uri, [("d00002", back["title"], back["text"])])  # deleted and inserted again
    upsert(uri, [("d00250", "t", "deleted, and back with another text")])
    upsert(uri, [("born", "t", "and dead")])
    lance.dataset(uri).delete("doc_id = 'born'")
    upsert(uri, [("d00006", "another title", before["d00006"]["text"])])
    lance.dataset(uri).update({"doc_id": "'renamed'"}, where="doc_id = 'd00007'")
    lance.dataset(uri).optimize.compact_files()


def best(cli, file: str, query: str) -> str:
    return cli("search", "-c", file, query)["results"][0]["hits"][0]["doc_id"]


def assert_is_the_source(config, release, uri: str) -> None:
    expected = {r["doc_id"]: r for r in lance.dataset(uri).to_table().to_pylist()}
    table = rows_of(Storage.open(config.storage.root), release)
    assert table["doc_id"].to_pylist() == sorted(expected)
    for row in table.to_pylist():
        document = expected[row["doc_id"]]
        assert row["text_hash"] == digest(document["text"].encode())
        assert row["title"] == document["title"]
    assert release.verify.passed


@pytest.mark.parametrize("stable", [True, False])
def test_every_kind_of_change_ends_up_right_and_only_new_texts_are_embedded(
    tmp_path, make_config, quiet, stable
):
    uri = source_of(tmp_path, stable=stable)
    config = make_config(uri, table={"carry": ["title"]})
    first = full_rebuild(config, quiet, executor=Inline())
    change(uri)
    release = catch_up(config, first, quiet, executor=Inline())
    assert_is_the_source(config, release, uri)
    (changes,) = quiet.of(ChangesFound)
    # d00003, new-1, d00250; d00006 has another title only; renamed has the text of d00007.
    assert (changes.embed, changes.refresh, changes.copied) == (3, 1, 1)
    assert changes.removed == 2  # d00001, d00007
    assert changes.documents == 7
    assert changes.how.startswith("delta")
    assert (release.origin, release.table) == (first.id, first.table)
    assert catch_up(config, release, quiet, executor=Inline()) == release
    whole = make_config(uri, table={"carry": ["title"]}, embed={"reuse": False}, name="whole.yaml")
    rebuilt = full_rebuild(whole, quiet, executor=Inline())
    storage = Storage.open(config.storage.root)
    columns = ["doc_id", "vector", "text_hash", "title", "space"]
    assert (
        rows_of(storage, rebuilt).select(columns).equals(rows_of(storage, release).select(columns))
    )
    assert rows_of(storage, first).num_rows == 300, "the old version changed"


@pytest.mark.parametrize("how", ["overwrite", "restore", "cleaned"])
def test_a_window_that_no_history_of_lance_explains_ends_up_right_too(
    tmp_path, make_config, quiet, how
):
    uri = source_of(tmp_path, stable=True)
    config = make_config(uri, table={"carry": ["title"]})
    first = full_rebuild(config, quiet, executor=Inline())
    change(uri)
    if how == "overwrite":
        rows = lance.dataset(uri).to_table()
        lance.write_dataset(rows.slice(10), uri, mode="overwrite")
    if how == "restore":
        lance.dataset(uri, version=1).restore()
        lance.dataset(uri).delete("doc_id = 'd00010'")
    if how == "cleaned":
        import datetime as dt

        lance.dataset(uri).cleanup_old_versions(
            older_than=dt.timedelta(microseconds=1), error_if_tagged_old_versions=False
        )
    release = catch_up(config, first, quiet, executor=Inline())
    assert_is_the_source(config, release, uri)
    (changes,) = quiet.of(ChangesFound)
    assert changes.how.startswith("delta")


def test_compaction_alone_embeds_nothing_and_makes_no_release(tmp_path, make_config, quiet):
    uri = source_of(tmp_path, stable=True)
    config = make_config(uri)
    first = full_rebuild(config, quiet, executor=Inline())
    lance.dataset(uri).optimize.compact_files()
    assert catch_up(config, first, quiet, executor=Inline()) == first
    assert quiet.events[-1].versions == 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_promote_catches_up_first_and_a_rollback_goes_to_what_was_caught_up(
    tmp_path, make_config, config_file, quiet, cli
):
    uri = source_of(tmp_path, stable=True)
    old = make_config(uri, encoder={"model": "hashing:32"})
    first = full_rebuild(old, quiet, executor=RayExecutor())
    promote(catalog_of(old), first.id, initial_reason="test")
    file = config_file(uri, encoder={"model": "hashing:64"})
    new = make_config(uri, encoder={"model": "hashing:64"})
    second = full_rebuild(new, quiet, executor=RayExecutor())
    upsert(uri, [("late", "t", "a document that came after the build")])
    moved = cli("promote", "-c", file, "--force", "--reason", "test")
    assert moved["to"] != second.id
    assert moved["behind"]["newest"] == moved["behind"]["source_version"]
    assert (
        cli("search", "-c", file, "a document that came after the build")["results"][0]["hits"][0][
            "doc_id"
        ]
        == "late"
    )
    upsert(uri, [("later", "t", "one more of them")])
    previous = cli("catch-up", "previous", "-c", file)
    assert (previous["from"], previous["serves"]) == (first.id, False)
    back = cli("rollback", "-c", file)
    assert back["to"] == previous["to"]
    assert best(cli, file, "one more of them") == "later"
    assert catalog_of(new).require_live().standing[-1].release == back["to"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_catch_up_of_live_moves_the_alias_to_the_same_model(
    tmp_path, make_config, config_file, quiet, cli
):
    uri = source_of(tmp_path, stable=True)
    file, config = config_file(uri), make_config(uri)
    first = full_rebuild(config, quiet, executor=RayExecutor())
    promote(catalog_of(config), first.id, initial_reason="test")
    upsert(uri, [("late", "t", "a document that came after the build")])
    result = cli("catch-up", "-c", file)
    assert (result["from"], result["generation"], result["serves"]) == (first.id, 2, True)
    assert catalog_of(config).require_live().action == "catch-up"
    assert catalog_of(config).require_live().standing[-1].release == result["to"]
    assert cli("catch-up", "-c", file)["generation"] is None


def test_dead_letters_stay_dead_until_their_text_changes_or_they_are_retried(
    tmp_path, make_config, quiet
):
    uri = str(tmp_path / "nulls.lance")
    texts = [None if i in (4, 9, 11) else f"text {i}" for i in range(40)]
    rows = pa.table({"doc_id": [f"d{i}" for i in range(40)], "text": texts})
    lance.write_dataset(rows, uri, enable_stable_row_ids=True)
    config = make_config(uri, embed={"max_dead_letters": 3})
    first = full_rebuild(config, quiet, executor=Inline())
    lance.dataset(uri).update({"text": "'a text at last'"}, where="doc_id = 'd4'")
    lance.dataset(uri).delete("doc_id = 'd9'")
    release = catch_up(config, first, quiet, executor=Inline())
    assert (release.rows, release.dead_letters) == (38, 1)
    again = catch_up(config, release, quiet, retry_dead_letters=True, executor=Inline())
    assert (again.rows, again.dead_letters) == (38, 1)
    assert again.verify.passed


def test_a_source_that_lost_its_text_column_stops_before_anything_is_done(
    tmp_path, make_config, quiet
):
    uri = source_of(tmp_path, stable=True)
    config = make_config(uri)
    first = full_rebuild(config, quiet, executor=Inline())
    lance.dataset(uri).alter_columns({"path": "text", "name": "body"})
    with pytest.raises(SourceError, match="no column 'text'"):
        catch_up(config, first, quiet, executor=Inline())


def test_a_new_column_is_no_change_and_an_emptied_source_is_refused(tmp_path, make_config, quiet):
    uri = source_of(tmp_path, stable=True)
    config = make_config(uri)
    first = full_rebuild(config, quiet, executor=Inline())
    promote(catalog_of(config), first.id, initial_reason="test")
    lance.dataset(uri).add_columns({"length": "1"})
    assert catch_up(config, first, quiet, executor=Inline()).rows == first.rows
    embedded = [e.embed for e in quiet.of(ChangesFound)]
    assert embedded in ([], [0])
    lance.dataset(uri).delete("true")
    with pytest.raises(SourceError, match="has no documents"):
        api.catch_up(config, "live", emit=quiet)
    assert catalog_of(config).require_live().release.origin == first.id


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
def test_a_source_made_anew_is_caught_up_with_once_and_rollback_goes_there(
    tmp_path, make_config, quiet, cli, config_file
):
    uri = source_of(tmp_path, stable=True)
    config = make_config(uri)
    lance.dataset(uri).delete("doc_id = 'd00001'")
    first = full_rebuild(config, quiet, executor=RayExecutor())
    promote(catalog_of(config), first.id, initial_reason="test")
    other = full_rebuild(
        make_config(uri, encoder={"model": "hashing:16"}), quiet, executor=RayExecutor()
    )
    promote(catalog_of(config), other.id, force_reason="a test")
    shutil.rmtree(uri)
    lance.write_dataset(pa.Table.from_pylist(documents(30, 1)), uri, enable_stable_row_ids=True)
    file = config_file(uri)
    assert cli("catch-up", "previous", "-c", file)["rows"] == 30
    releases = len(catalog_of(config).releases())
    for _ in range(2):
        assert cli("catch-up", "previous", "-c", file)["rows"] == 30
    assert len(catalog_of(config).releases()) == releases, "it never ends"
    back = cli("rollback", "-c", file)
    assert catalog_of(config).release(back["to"]).rows == 30
    assert back["to"] != first.id


@pytest.mark.parametrize(
    ("was", "now"), [(None, ""), ("", None), (None, "a text"), ("a text", None)]
)
def test_a_text_that_becomes_null_or_is_null_no_more_is_another_text(
    tmp_path, make_config, quiet, was, now
):
    uri = str(tmp_path / "s.lance")
    rows = {"doc_id": [f"d{n}" for n in range(6)], "text": [was, "", None, "b", "c", "d"]}
    lance.write_dataset(pa.table(rows), uri, enable_stable_row_ids=True, max_rows_per_file=3)
    config = make_config(uri, embed={"max_dead_letters": 9})
    first = full_rebuild(config, quiet, executor=Inline())
    assert (first.rows, first.dead_letters) == ((4, 2) if was is None else (5, 1))
    value = "cast(null as string)" if now is None else f"'{now}'"
    lance.dataset(uri).update({"text": value}, where="doc_id = 'd0'")
    newer = catch_up(config, first, quiet, executor=Inline())
    assert (newer.rows, newer.dead_letters) == ((4, 2) if now is None else (5, 1))
    assert newer.verify.passed
