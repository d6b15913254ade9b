"""Which releases give their vectors, each rule with the later checks out of the way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from inline import Silent
from releases import SPACE, make_release, verified

from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.engine.reuse import find_donors
from reembed.errors import IntegrityError
from reembed.store.records import encode
from reembed.store.storage import Storage


@pytest.fixture
def catalog(tmp_path):
    return Catalog(Storage.open(str(tmp_path / "root")), "docs")


def test_a_damaged_record_of_the_own_alias_ends_the_search_for_vectors(catalog):
    release = make_release(catalog, "a")
    assert [d.release for d in find_donors(catalog, SPACE.id, Silent())] == ["a"]
    catalog.storage.write(f"releases/docs/{release.id}.json", {})
    with pytest.raises(IntegrityError, match=release.id):
        find_donors(catalog, SPACE.id, Silent())


def test_the_newest_release_of_each_table_gives_its_vectors(catalog):
    for number in (2, 9, 10):  # by name the tenth comes first
        make_release(catalog, f"a-u{number}-{number}", table="tables/a.lance")
    make_release(catalog, "b")
    assert [d.release for d in find_donors(catalog, SPACE.id, Silent())] == ["a-u10-10", "b"]


def test_a_release_with_several_rows_a_document_gives_no_vectors(catalog):
    make_release(catalog, "a", rows=20, documents=10)
    make_release(catalog, "b")
    told = []
    assert [d.release for d in find_donors(catalog, SPACE.id, told.append)] == ["b"]
    assert [str(e) for e in told if "copied from a: a text has several there" in str(e)]


def test_a_release_that_gc_marked_gives_no_vectors(catalog):
    make_release(catalog, "a")
    make_release(catalog, "b")
    catalog.mark_retired("a")
    assert [d.release for d in find_donors(catalog, SPACE.id, Silent())] == ["b"]


def test_releases_of_every_alias_give_their_vectors(catalog):
    for alias in ("a", "docs", "z"):
        make_release(Catalog(catalog.storage, alias), f"{alias}-0-v1-1")
    found = [d.release for d in find_donors(catalog, SPACE.id, Silent())]
    assert found == ["a-0-v1-1", "docs-0-v1-1", "z-0-v1-1"]


COPIED_FROM = {"a": "", "b": "a", "c": "b", "d": "c", "e": "", "f": "e"}


@pytest.fixture
def lines(catalog, monkeypatch):
    """Six lines, each with the line that it copied from; none is verified that is in `failed`."""

    def plan(run):
        origin = COPIED_FROM[run.id]
        return SimpleNamespace(donors=[SimpleNamespace(origin=origin)] if origin else [])

    for line in COPIED_FROM:
        make_release(catalog, line, table=f"tables/{line}.lance")
    monkeypatch.setattr(Run, "plan", plan)
    return catalog


@pytest.mark.parametrize(
    ("failed", "left"), [("", "abcdef"), ("a", "ef"), ("b", "aef"), ("d", "abcef"), ("ae", "")]
)
def test_lines_that_copied_from_one_that_failed_give_nothing_however_far(lines, failed, left):
    for line in failed:
        lines.storage.write(f"runs/{line}/verify.json", encode(verified(why="a test")))
    assert "".join(d.release for d in find_donors(lines, SPACE.id, Silent())) == left


def test_a_line_whose_plan_cannot_be_read_gives_nothing_where_another_failed(lines, monkeypatch):
    def unreadable(run):
        raise IntegrityError("the plan is damaged")

    monkeypatch.setattr(Run, "plan", unreadable)
    assert len(find_donors(lines, SPACE.id, Silent())) == len(COPIED_FROM)
    lines.storage.write("runs/a/verify.json", encode(verified(why="a test")))
    assert find_donors(lines, SPACE.id, Silent()) == ()
