"""How far a release is behind: of several versions the newest counts, and what it is known to equal."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import replace
from types import SimpleNamespace

import lance
import pytest
from releases import make_release

from reembed.catalog.releases import Catalog, SourceRef
from reembed.config.settings import Config
from reembed.lifecycle.moves import roll_back
from reembed.source import lag as lag_module
from reembed.source import versions
from reembed.source.dataset import Source
from reembed.source.lag import Lag, caught_up, lag, note, noted_place
from reembed.source.lag import behind as compared
from reembed.store.storage import Storage


@pytest.fixture
def behind(corpus, tmp_path):
    """(catalog, release, uri): two releases of version 1, whose source is at version 4."""
    uri = corpus(300)
    config = Config(
        alias="docs",
        source={"uri": uri},
        encoder={"model": "hashing:8"},
        storage={"root": str(tmp_path / "root")},
    )
    catalog = Catalog(Storage.open(config.storage.root), "docs")
    source = Source.open(config).ref
    make_release(catalog, "docs-0-v1-1", source=source)
    release = make_release(catalog, "docs-0-v1-2", source=source)
    for name in ("d00001", "d00150", "d00299"):
        lance.dataset(uri).update({"text": "'another'"}, where=f"doc_id = '{name}'")
    return catalog, release, uri


def test_versions_and_documents_that_came_since_are_counted(behind):
    catalog, release, _ = behind
    found = lag(catalog, release)
    assert (found.source_version, found.newest, found.versions, found.documents) == (1, 4, 3, 3)
    assert found.why is None
    assert 0 <= found.seconds < 3600


@pytest.mark.parametrize("versions", [1, 4, 9])
def test_each_version_is_opened_once_however_many_came_since(behind, monkeypatch, versions):
    catalog, release, uri = behind
    for n in range(versions):
        lance.dataset(uri).update({"text": "'again'"}, where=f"doc_id = 'd{n:05}'")
    opened: list[int | None] = []
    plain = lance.dataset
    monkeypatch.setattr(
        lance, "dataset", lambda *a, **k: opened.append(k.get("version")) or plain(*a, **k)
    )
    assert lag(catalog, release).documents == 3 + versions - (versions > 1)
    newest = 4 + versions
    assert opened == [None, 1, newest, 2]


def test_a_rollback_that_cannot_tell_what_is_missing_says_so_and_has_moved_the_alias(behind):
    catalog, release, _ = behind
    note(catalog, release, 1, caught_up(catalog, release).newest())
    (noted,) = catalog.storage.names(f"runs/{release.id}/caught-up/")
    catalog.storage.write_bytes(f"runs/{release.id}/caught-up/{noted}", b"{")
    first = catalog.append(None, "promote", release)
    catalog.append(first, "promote", catalog.release("docs-0-v1-1"))
    moved = roll_back(catalog)
    assert moved.release.id == catalog.live().release.id == release.id
    assert (moved.behind.newest, moved.behind.documents) == (None, None)
    assert "is not a valid reembed record" in moved.behind.why


def test_a_release_that_equals_the_newest_version_is_behind_by_nothing(behind):
    catalog, release, _ = behind
    note(catalog, release, 1, caught_up(catalog, release).newest())
    found = lag(catalog, release)
    assert (found.versions, found.documents, found.seconds, found.why) == (0, 0, 0.0, None)


def test_of_an_equal_version_nothing_is_read():
    source = Source(SourceRef("nowhere.lance", 3, "f", "doc_id", "text", None, ()), ())
    assert compared(source, source, None, None) == Lag(3, 3, 0, 0.0)


def test_what_a_release_was_found_to_equal_is_kept_for_this_release_alone(behind):
    catalog, release, uri = behind
    other = catalog.release("docs-0-v1-1")
    newer = caught_up(catalog, release).newest()
    lance.dataset(uri).update({"text": "'a third'"}, where="doc_id in ('d00001', 'd00002')")
    note(catalog, release, 7, newer)
    assert (caught_up(catalog, release), noted_place(catalog, release)) == (newer, (7, 4))
    assert (caught_up(catalog, other).version, noted_place(catalog, other)) == (1, (0, 0))
    assert (lag(catalog, release).documents, lag(catalog, other).documents) == (2, 4)


def test_who_notes_late_takes_nothing_back(behind):
    """Of many passes over a release, in whatever order they end, the newest counts."""
    catalog, release, _ = behind
    newest = caught_up(catalog, release).newest()
    places = [(1, 2), (1, 4), (2, 3), (9, 4), (10, 3), (10, 4)]
    for order in (places, places[::-1], places[3:] + places[:3]):
        for path, _ in [*catalog.storage.objects(f"runs/{release.id}/")]:
            catalog.storage.remove(path)
        for done, (number, version) in enumerate(order, 1):
            ref = replace(newest.ref, version=version)
            note(catalog, release, number, replace(newest, ref=ref))
            assert noted_place(catalog, release) == max(order[:done])
            assert caught_up(catalog, release).version == max(order[:done])[1]
    folder = f"runs/{release.id}/caught-up"
    for name in ("notes.json", "00000099-00000000000000000009.json.bak", "99999999.json"):
        catalog.storage.write_bytes(f"{folder}/{name}", b"{}")
    assert noted_place(catalog, release) == (10, 4)


def test_a_source_that_is_gone_is_said(behind):
    catalog, release, uri = behind
    shutil.rmtree(uri)
    found = lag(catalog, release)
    assert (found.source_version, found.newest, found.versions) == (1, None, None)
    assert (found.documents, found.seconds) == (None, None)
    assert "cannot open the dataset" in found.why


def test_why_a_version_cannot_be_read_is_told_in_the_words_of_the_store(behind, monkeypatch):
    catalog, release, uri = behind

    def refused(self):
        raise OSError("403: this key may not list\nat a line of a library")

    monkeypatch.setattr(Source, "newest", refused)
    assert lag(catalog, release).why == f"{uri} cannot be read: 403: this key may not list"
    monkeypatch.setattr(Source, "newest", lambda self: (_ for _ in ()).throw(TimeoutError))
    assert lag(catalog, release).why == f"{uri} cannot be read: TimeoutError"


NOW = dt.datetime(2026, 11, 26, 12, tzinfo=dt.UTC)


class Stopped(dt.datetime):
    """A clock that stands at NOW."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
        assert tz is dt.UTC
        return NOW


@pytest.mark.parametrize(("ahead", "seconds"), [(5.0, 0.0), (-0.2, 0.2), (-7.0, 7.0)])
def test_a_clock_that_runs_ahead_gives_no_negative_age(behind, monkeypatch, ahead, seconds):
    catalog, release, _ = behind
    written = NOW + dt.timedelta(seconds=ahead)
    monkeypatch.setattr(versions, "written_after", lambda newest, version: written)
    monkeypatch.setattr(lag_module, "dt", SimpleNamespace(datetime=Stopped, UTC=dt.UTC))
    assert lag(catalog, release).seconds == seconds


def test_seconds_count_from_the_first_version_that_the_release_lacks(behind, monkeypatch):
    catalog, release, _ = behind
    asked: list[int] = []
    plain = versions.written_after
    monkeypatch.setattr(
        versions, "written_after", lambda *given: asked.append(given[-1]) or plain(*given)
    )
    assert lag(catalog, release).why is None
    assert asked == [1]
