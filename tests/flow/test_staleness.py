"""How far a release is behind its source is seen without asking for it, and is not damage."""

from __future__ import annotations

import datetime as dt
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

from reembed.catalog.releases import Catalog
from reembed.catalog.reports import ROWS
from reembed.catalog.runs import Run
from reembed.engine.executor import ONE_CPU
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import IntegrityError
from reembed.lifecycle import scratch
from reembed.lifecycle.promote import promote
from reembed.lifecycle.verification import verify_release
from reembed.source import versions
from reembed.source.dataset import Source
from reembed.source.delta import Delta
from reembed.source.lag import caught_up, lag, note
from reembed.store.storage import Storage
from reembed.strategies import differing, unique_ids
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def live(corpus, make_config):
    """(source URI, config, catalog, release): a release of 300 documents that serves."""
    uri = corpus(300)
    config = make_config(uri, table={"carry": ["title"]})
    release = full_rebuild(config, Silent(), executor=Inline())
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    promote(catalog, release.id, initial_reason="a test")
    return uri, config, catalog, release


def move_on(uri):
    """Two documents get another text, one another title, one goes, one comes: three versions."""
    dataset = lance.dataset(uri)
    dataset.update({"text": "'another text'"}, where="doc_id in ('d00001', 'd00200')")
    dataset.update({"title": "'another title'"}, where="doc_id = 'd00002'")
    dataset.delete("doc_id = 'd00003'")
    late = {"doc_id": ["late"], "title": ["late"], "text": ["late"]}
    lance.write_dataset(pa.table(late), uri, mode="append")


def verified(catalog, release, level=3):
    return verify_release(
        catalog, release.id, level=level, sample=20, resume=False, stall_s=60
    ).to_json()


def counts(differences):
    return {k: d["count"] for k, d in differences.items() if d["count"]}


def test_verify_says_what_the_newest_version_has_more_and_calls_it_behind_not_damage(
    live, cli, config_file
):
    uri, _, catalog, release = live
    assert verified(catalog, release)["behind"] is None
    move_on(uri)
    report = verified(catalog, release)
    assert (report["passed"], counts(report["differences"])) == (True, {})
    assert counts(report["behind"]) == {"missing": 1, "extra": 1, "stale": 2, "carried": 1}
    assert report["behind"]["missing"]["examples"] == ["late"]
    standing = report["lag"]
    assert (standing["source_version"], standing["newest"], standing["versions"]) == (1, 5, 4)
    assert standing["documents"] == 5
    assert 0 <= standing["seconds"] < 600
    assert counts(verified(catalog, release, level=1)["behind"]) == {"missing": 1, "extra": 1}
    assert verified(catalog, release, level=0)["behind"] is None


def test_fresh_within_exits_5_only_where_documents_older_than_that_are_missing(
    live, cli, config_file
):
    uri, config, _, release = live
    file = config_file(uri, table={"carry": ["title"]})
    assert cli("verify", "-c", file, "--fresh-within", "0s")["passed"]
    lance.dataset(uri).update_config({"a": "b"})
    assert cli("verify", "-c", file, "--level", "0", "--fresh-within", "0s")["lag"]["versions"] == 1
    lance.dataset(uri).optimize.compact_files()
    assert cli("verify", "-c", file, "--fresh-within", "0s")["lag"]["documents"] == 0
    move_on(uri)
    assert cli("verify", "-c", file, "--fresh-within", "1h")["passed"]
    stale = cli("verify", "-c", file, "--fresh-within", "0s", code=5)
    assert (stale["passed"], stale["fresh"]) == (True, False)
    assert cli("verify", "-c", file, "--level", "0", "--fresh-within", "0s", code=5)
    catch_up(config, release, Silent(), executor=Inline())
    newest = catch_up(config, release, Silent(), executor=Inline())
    assert cli("verify", "-c", file, "--release", newest.id, "--fresh-within", "0s")["passed"]
    assert cli.process("verify", "-c", file, "--fresh-within", "soon").returncode == 2


@pytest.mark.parametrize("level", ["0", "1", "2", "3"])
def test_texts_that_are_stale_are_not_fresh_at_any_level(live, cli, config_file, level):
    uri, _, _, _ = live
    file = config_file(uri, table={"carry": ["title"]})
    lance.dataset(uri).update({"text": "'another text'"}, where="doc_id in ('d00001', 'd00200')")
    stale = cli("verify", "-c", file, "--level", level, "--fresh-within", "0s", code=5)
    assert stale["lag"]["documents"] == 2


@pytest.mark.parametrize("verb", ["rollback", "promote"])
def test_the_alias_moves_and_is_told_of_though_the_source_is_damaged(
    live, make_config, cli, config_file, verb
):
    uri, _, catalog, first = live
    other = full_rebuild(
        make_config(uri, encoder={"model": "hashing:32"}), Silent(), executor=Inline()
    )
    if verb == "rollback":
        promote(catalog, other.id, force_reason="a test")
    lance.dataset(uri).delete("doc_id = 'd00003'")
    for file in (Path(uri) / "_deletions").iterdir():
        file.write_bytes(b"junk")
    words = {
        "rollback": ["rollback"],
        "promote": ["promote", other.id, "--no-catch-up", "--force", "--reason", "a test"],
    }
    said = cli(*words[verb], "-c", config_file(uri))
    assert said["to"] == catalog.live().release.id == (first if verb == "rollback" else other).id
    assert f"{uri} cannot be read" in said["behind"]["why"]
    assert f"{uri} cannot be read" in cli("status", "-c", config_file(uri))["live"]["lag"]["why"]


def test_a_dead_letter_that_was_deleted_from_the_source_is_named(make_config, tmp_path):
    uri = str(tmp_path / "s.lance")
    texts = [None, "wing", "flow"]
    lance.write_dataset(pa.table({"doc_id": ["d0", "d1", "d2"], "text": texts}), uri)
    config = make_config(uri, source={"uri": uri, "text": "text"}, embed={"max_dead_letters": 1})
    release = full_rebuild(config, Silent(), executor=Inline())
    assert release.dead_letters == 1
    lance.dataset(uri).delete("doc_id = 'd0'")
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    report = verified(catalog, release)
    assert report["passed"]
    assert report["behind"]["extra"] == {"count": 1, "examples": ["d0"]}


def append_one(uri: str, name: str) -> None:
    rows = [dict.fromkeys(lance.dataset(uri).schema.names, name)]
    lance.write_dataset(pa.Table.from_pylist(rows), uri, mode="append")


def test_a_cleanup_of_older_versions_makes_no_release_fresh(live, config_file, cli):
    uri, _, catalog, release = live
    file = config_file(uri, table={"carry": ["title"]})
    append_one(uri, "a")
    time.sleep(3)
    append_one(uri, "b")
    behind = lag(catalog, release)
    assert cli("verify", "-c", file, "--fresh-within", "2s", code=5)
    older = dt.timedelta(microseconds=1)
    lance.dataset(uri).cleanup_old_versions(older, error_if_tagged_old_versions=False)
    assert len(lance.dataset(uri).versions()) == 2, "the pinned one and the newest"
    assert lag(catalog, release).seconds >= behind.seconds >= 3
    assert cli("verify", "-c", file, "--fresh-within", "2s", code=5)


@pytest.mark.parametrize("change", ["delete", "rename", "update"])
def test_another_change_after_a_backup_was_put_back_is_another_version(
    corpus, make_config, config_file, cli, tmp_path, change
):
    """The same number of versions, and the same data files."""
    uri = corpus(60)
    for name in ("one", "two"):
        lance.dataset(uri).add_columns({name: f"concat(text, ' {name}')"})
    config = make_config(uri)
    release = full_rebuild(config, Silent(), executor=Inline())
    shutil.copytree(uri, tmp_path / "backup")
    make = {
        "delete": lambda n: lance.dataset(uri).delete(f"doc_id = '{ids[n]}'"),
        "rename": lambda n: lance.dataset(uri).alter_columns(
            {"path": "text", "name": "was"}, {"path": ("one", "two")[n], "name": "text"}
        ),
        "update": lambda n: lance.dataset(uri).update({"text": "'x'"}, f"doc_id = '{ids[n]}'"),
    }
    ids = lance.dataset(uri).to_table(columns=["doc_id"])["doc_id"].to_pylist()
    make[change](0)
    first = catch_up(config, release, Silent(), executor=Inline())
    shutil.rmtree(uri)
    shutil.copytree(tmp_path / "backup", uri)
    make[change](1)
    assert lance.dataset(uri).version == first.source.version
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    assert lag(catalog, first).documents != 0
    second = catch_up(config, first, Silent(), executor=Inline())
    assert second.id != first.id
    assert verified(catalog, second)["passed"]
    said = cli("verify", "-c", config_file(uri), "--release", first.id, code=2)
    assert said["fix"].startswith("reembed catch-up")


def test_a_release_that_claims_to_be_caught_up_with_a_version_must_equal_it(live):
    uri, config, catalog, release = live
    move_on(uri)
    note(catalog, release, 1, Source.open(config))
    report = verified(
        catalog, release, level=ROWS
    )  # a stale row drawn for `wrong_vector` is one more
    assert report["source_version"] == 5
    assert counts(report["differences"]) == {"missing": 1, "extra": 1, "stale": 2, "carried": 1}


def test_a_pass_that_finds_nothing_compares_every_row_before_it_says_so(live, monkeypatch):
    uri, config, catalog, release = live
    move_on(uri)
    monkeypatch.setattr(versions, "delta", lambda before, after: Delta((), (), {}))
    newer = catch_up(config, release, Silent(), executor=Inline())
    assert newer.id != release.id
    assert newer.source.version == caught_up(catalog, newer).version == 5


def test_many_rows_are_compared_in_tasks_of_the_cluster(live, monkeypatch, ray_local):
    uri, config, catalog, release = live
    move_on(uri)
    monkeypatch.setattr(versions, "delta", lambda before, after: Delta((), (), {}))
    monkeypatch.setattr(differing, "HERE_ROWS", 100)
    monkeypatch.setattr(unique_ids, "HELD_IDS", 100)
    asked = []
    honest = RayExecutor.each

    def each(self, function, items, needs=ONE_CPU):
        asked.append(function.__module__)
        return honest(self, function, items, needs)

    monkeypatch.setattr(RayExecutor, "each", each)
    newer = catch_up(config, release, Silent(), executor=RayExecutor())
    ids, rows = ["reembed.strategies.unique_ids"] * 2, ["reembed.lifecycle.reading"] * 2
    assert asked[:5] == [*ids, *rows, "reembed.strategies.differing"]
    assert newer.source.version == caught_up(catalog, newer).version == 5
    assert counts(verified(catalog, newer)["differences"]) == {}
    assert not scratch.folders(Run(catalog.storage, release.id))


def test_status_shows_how_far_live_is_behind(live, cli, config_file):
    uri, *_ = live
    file = config_file(uri, table={"carry": ["title"]})
    assert cli("status", "-c", file)["live"]["lag"]["documents"] == 0
    move_on(uri)
    shown = cli("status", "-c", file)["live"]["lag"]
    assert (shown["source_version"], shown["newest"], shown["documents"]) == (1, 5, 5)
    text = cli.process("status", "-c", file).stdout
    assert re.search(
        r"equal to version 1, the newest is 5; what changed in the last (\d+m)?\d+s ", text
    )
    assert "is not in it (at most 5 documents)" in text


def test_status_survives_a_source_that_is_gone_or_replaced(live, cli, config_file):
    uri, _, catalog, release = live
    file = config_file(uri, table={"carry": ["title"]})
    shutil.move(uri, f"{uri}.away")
    gone = cli("status", "-c", file)["live"]["lag"]
    assert gone["newest"] is None
    assert gone["why"].startswith("cannot open the dataset")
    assert "not known to be up to date: cannot open" in cli.process("status", "-c", file).stdout
    lance.write_dataset(lance.dataset(f"{uri}.away").to_table(), uri)
    replaced = lag(catalog, release)
    assert (replaced.documents, replaced.newest) == (None, 1)
    assert replaced.why.endswith("another dataset took its place")


def test_verify_of_a_release_whose_source_is_gone_compares_nothing_with_another(
    live, cli, config_file
):
    uri, *_ = live
    file = config_file(uri, table={"carry": ["title"]})
    shutil.rmtree(uri)
    lance.write_dataset(pa.table({"doc_id": ["x"], "title": ["x"], "text": ["x"]}), uri)
    failed = cli("verify", "-c", file, code=2)
    assert "another dataset took its place" in failed["why"]


def test_status_loads_no_model_and_no_engine(live, config_file):
    uri, *_ = live
    file = config_file(uri, table={"carry": ["title"]})
    code = (
        "import sys; from reembed.cli.verbs import main\n"
        f"try: main(['status', '-c', {file!r}])\n"
        "except SystemExit: pass\n"
        "heavy = ['torch', 'ray', 'faiss', 'transformers', 'sentence_transformers']\n"
        "sys.exit(', '.join(m for m in heavy if m in sys.modules) or 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.strip()) == (0, "")


def test_a_seal_that_would_keep_rows_under_other_columns_is_refused(live, monkeypatch):
    uri, config, _, release = live
    rows = lance.dataset(uri).to_table()
    title = rows["title"].cast(pa.large_string())
    rows = rows.set_column(rows.column_names.index("title"), "title", title)
    lance.write_dataset(rows, uri, mode="overwrite")
    lance.dataset(uri).delete("doc_id = 'd00003'")
    monkeypatch.setattr(Source, "retyped", lambda self, table: [])
    with pytest.raises(
        IntegrityError, match=r"other columns than the run writes \(title: large_string\)"
    ):
        catch_up(config, release, Silent(), executor=Inline())
