"""The alias never moves to older documents: not by a catch-up that ends late, nor by a promotion."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import lance
import pyarrow as pa
import pytest
from inline import Inline
from releases import index_file

from reembed import api
from reembed.catalog.releases import Catalog
from reembed.cli import paste
from reembed.engine import ray_executor
from reembed.errors import Conflict, IntegrityError, UsageError
from reembed.lifecycle import candidates, promote
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


@pytest.fixture
def line(corpus, make_config, quiet):
    """(catalog, first, newer, late): `late` read an older source than `newer`, and ended after it."""
    source = corpus(300)
    config = make_config(source)
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    first = full_rebuild(config, quiet, executor=Inline())
    put(source, "a")
    paused = lance.dataset(source).version
    put(source, "b")
    newer = catch_up(config, first, quiet, executor=Inline())
    # As if it had been planned before `newer`, from `first` as well, and had ended after it.
    planned, place = f"{first.id}-late", replace(newer.place, step=1, version=paused)
    source = replace(newer.source, version=paused)
    late = replace(newer, id=planned, source=source, place=place)
    catalog.register(late)
    return catalog, first, newer, late


def put(source: str, *names: str) -> None:
    rows = [{"doc_id": n, "title": n, "text": f"text of {n}"} for n in names]
    lance.write_dataset(pa.Table.from_pylist(rows), source, mode="append")


def test_a_catch_up_that_ends_late_does_not_move_live_back(line):
    catalog, _first, newer, late = line
    assert catalog.releases()[-1] == newer
    promote.promote(catalog, newer.id, initial_reason="a test")
    assert promote.follow(catalog, late).release.id == newer.id
    assert [r.release.id for r in catalog.log()] == [newer.id]


def test_a_late_catch_up_whose_documents_became_those_of_live_moves_nothing(
    corpus, make_config, quiet
):
    source = corpus(60)
    config = make_config(source)
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    first = full_rebuild(config, quiet, executor=Inline())
    promote.promote(catalog, first.id, initial_reason="a test")
    put(source, "a")
    promote.follow(catalog, catch_up(config, first, quiet, executor=Inline()))
    lance.dataset(source).delete("doc_id = 'a'")
    began = catalog.require_live()
    newest = catch_up(config, began.release, quiet, executor=Inline())
    promote.follow(catalog, newest)
    same = catch_up(config, first, quiet, executor=Inline())
    assert same == first, "its documents are those of the newest version again"
    assert promote.follow(catalog, same, decided_on=began).release == newest
    assert catalog.require_live().release == newest


def test_a_catch_up_that_ends_in_time_moves_live(line):
    catalog, first, newer, late = line
    catalog.append(None, "promote", first)
    assert promote.follow(catalog, late).release.id == late.id
    assert promote.follow(catalog, newer).release.id == newer.id


def test_a_catch_up_that_ends_after_a_rollback_does_not_undo_it(line):
    catalog, first, newer, late = line
    catalog.append(None, "promote", first)
    began = promote.follow(catalog, late)
    back = promote.rollback(catalog, first.id, reason="its documents are wrong")
    with pytest.raises(Conflict, match=f"was moved to {first.id} meanwhile"):
        promote.follow(catalog, newer, decided_on=began)
    assert catalog.live() == back
    assert promote.follow(catalog, newer, decided_on=back).release.id == newer.id


def test_a_catch_up_of_live_does_not_undo_a_rollback_within_its_line(
    corpus, make_config, quiet, monkeypatch
):
    source = corpus(60)
    config = make_config(source)
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    first = full_rebuild(config, quiet, executor=Inline())
    promote.promote(catalog, first.id, initial_reason="a test")
    monkeypatch.setattr(ray_executor, "RayExecutor", Inline)
    put(source, "a")
    second = api.catch_up(config, "live", emit=quiet).release.id
    promote.rollback(catalog, first.id, reason="a is wrong")
    put(source, "b")
    with pytest.raises(Conflict, match=f"rolled back to {first.id} at .*: a is wrong") as refused:
        api.catch_up(config, "live", emit=quiet)
    assert second in str(refused.value)
    assert catalog.require_live().release.id == first.id
    named = refused.value.fix.split("  ")[0].removeprefix("reembed catch-up ")
    assert api.catch_up(config, named, emit=quiet).serves
    assert catalog.require_live().release.rows == 62


def test_a_catch_up_of_live_fails_if_it_is_rolled_back_to_another_model_meanwhile_and_is_not_what_comes_next(
    corpus, make_config, quiet, monkeypatch
):
    source = corpus(60)
    config, other = make_config(source), make_config(source, encoder={"model": "hashing:32"})
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    first = full_rebuild(other, quiet, executor=Inline())
    promote.promote(catalog, first.id, initial_reason="a test")
    second = full_rebuild(config, quiet, executor=Inline())
    promote.promote(catalog, second.id, force_reason="a test")
    put(source, "a")

    class RolledBackMeanwhile(Inline):
        def embed(self, *given):
            super().embed(*given)
            promote.rollback(catalog, reason="it is worse")

    monkeypatch.setattr(ray_executor, "RayExecutor", RolledBackMeanwhile)
    with pytest.raises(Conflict, match=f"was moved to {first.id} meanwhile") as refused:
        api.catch_up(config, "live", emit=quiet)
    assert catalog.require_live().release.id == first.id
    grown = catalog.releases()[-1]
    assert grown.origin == second.id != grown.id
    assert grown.id in str(refused.value)
    passing = SimpleNamespace(verdict="pass", superseded=False, release=grown)
    found = replace(api.status(config), candidates=(passing,))
    assert found.rolled_back.release == second.id
    assert paste.after_status(found) == ["reembed history"]
    monkeypatch.setattr(ray_executor, "RayExecutor", Inline)
    assert api.catch_up(other, "live", emit=quiet).serves


def test_a_rollback_to_the_newest_documents_of_a_line_is_no_reason_to_refuse_a_catch_up(
    line, corpus, make_config, quiet, monkeypatch
):
    catalog, first, newer, _late = line
    source = str(newer.source.uri)
    config = make_config(source)
    monkeypatch.setattr(ray_executor, "RayExecutor", Inline)
    promote.promote(catalog, newer.id, initial_reason="a test")
    catalog.append(catalog.live(), "rollback", first)
    promote.rollback(catalog, newer.id, reason="forward again")
    put(source, "c")
    assert api.catch_up(config, "live", emit=quiet).serves
    assert catalog.require_live().action == "catch-up"


def test_a_rollback_from_another_line_does_not_stop_what_it_went_back_to(line):
    catalog, first, newer, late = line
    place = replace(newer.place, origin="other", step=0)
    other = catalog.register(replace(newer, id="other", place=place))
    catalog.append(None, "promote", first)
    began = catalog.append(catalog.live(), "promote", other)
    catalog.append(began, "rollback", late)
    assert promote.follow(catalog, newer, decided_on=began).release.id == newer.id


@pytest.mark.parametrize("reason", [None, "I insist"])
def test_what_is_behind_in_its_line_is_not_promoted_even_by_force(line, reason):
    catalog, first, newer, late = line
    for behind in (first, late):
        with pytest.raises(UsageError, match="is behind") as refused:
            promote.promote(catalog, behind.id, force_reason=reason)
        assert refused.value.fix == f"reembed promote {newer.id}"
    assert catalog.live() is None


def test_the_newest_of_a_line_is_the_one_with_the_newest_documents(line):
    catalog, first, newer, late = line
    for member in (first, newer, late):
        assert candidates.newest_of(catalog, member).id == newer.id


def test_rollback_goes_to_the_newest_documents_of_the_line(line, corpus, make_config, quiet):
    catalog, first, newer, _late = line
    catalog.append(None, "promote", first)
    other = make_config(corpus(60, 1), encoder={"model": "hashing:32"}, name="other.yaml")
    second = full_rebuild(other, quiet, executor=Inline())
    promote.promote(catalog, second.id, force_reason="a test")
    assert promote.rollback(catalog).release.id == newer.id


@pytest.mark.parametrize("damaged", ["index", "ids", "table", "record", "verification"])
def test_a_damaged_catch_up_that_never_served_does_not_bar_the_way_back(
    line, corpus, make_config, quiet, damaged
):
    catalog, first, newer, _late = line
    catalog.append(None, "promote", first)
    other = make_config(corpus(60, 1), encoder={"model": "hashing:32"}, name="other.yaml")
    second = full_rebuild(other, quiet, executor=Inline())
    promote.promote(catalog, second.id, force_reason="a test")
    path = {
        "index": index_file(catalog.storage, newer),
        "ids": index_file(catalog.storage, newer, "arrow"),
        "table": f"{newer.table}/_versions/{newer.table_manifest.name}",
        "record": f"releases/{catalog.alias}/{newer.id}.json",
        "verification": f"runs/{newer.id}/verify.json",
    }[damaged]
    catalog.storage.write_bytes(path, b"x")
    with pytest.raises(IntegrityError) as refused:
        promote.rollback(catalog)
    fix = refused.value.fix.split("  ")[0]
    assert fix == f"reembed rollback --to {first.id}"
    assert promote.rollback(catalog, fix.split()[-1]).release.id == first.id
    with pytest.raises(UsageError, match="is already live"):
        promote.rollback(catalog, first.id)


def test_what_grew_out_of_a_release_is_not_behind_it_where_the_source_was_made_again(
    corpus, make_config, quiet
):
    source = corpus(300)
    put(source, "a")
    put(source, "b")
    config = make_config(source)
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    first = full_rebuild(config, quiet, executor=Inline())
    promote.promote(catalog, first.id, initial_reason="a test")
    rows = lance.dataset(source).to_table()
    import shutil

    shutil.rmtree(source)
    lance.write_dataset(rows.slice(0, 290), source, enable_stable_row_ids=True)
    newer = catch_up(config, first, quiet, executor=Inline())
    assert newer.source.version < first.source.version
    assert promote.follow(catalog, newer).release.id == newer.id
