"""A process that dies between registering a release and ending its run: the release is safe from gc."""

from __future__ import annotations

import lance
import pyarrow as pa
import pytest
from inline import Inline, Silent

import reembed
from reembed import api, faults
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run
from reembed.errors import Conflict, UsageError
from reembed.lifecycle import gc
from reembed.lifecycle.promote import promote
from reembed.lifecycle.status import status
from reembed.store.storage import Storage
from reembed.strategies.full_rebuild import full_rebuild
from reembed.strategies.up_to_date import catch_up_and_follow


class Died(BaseException):
    """The process was killed."""


@pytest.fixture
def config(corpus, make_config):
    return make_config(corpus(60))


@pytest.fixture
def catalog(config):
    return Catalog(Storage.open(config.storage.root), config.alias)


@pytest.fixture
def at(monkeypatch):
    """Do something at a crash point, once."""

    def at(point, then):
        reached = []

        def meet(name):
            if name == point and not reached:
                reached.append(name)
                then()

        monkeypatch.setattr(faults, "point", meet)

    return at


def die():
    raise Died


def build(config, **how):
    return full_rebuild(config, Silent(), executor=Inline(), **how)


def built_but_not_ended(config, catalog, at):
    at("run.after_register", die)
    with pytest.raises(Died):
        build(config)
    (entry,) = catalog.entries()
    assert Run(catalog.storage, entry.id).result() is None
    return catalog.release(entry.id)


def serves(config, release):
    with reembed.open(config.storage.root, config.alias) as index:
        assert index.release.id == release.id
        assert len(index.search(["a text"], k=3)[0]) == 3


def test_what_was_promoted_is_kept_though_its_run_is_started_over(config, catalog, at):
    release = built_but_not_ended(config, catalog, at)
    promote(catalog, release.id, initial_reason="a test")
    build(config, fresh=True)
    gc.apply(catalog, gc.plan(catalog, 1), 1)
    serves(config, release)


def test_what_is_live_is_not_dropped_as_a_run(config, catalog, at):
    release = built_but_not_ended(config, catalog, at)
    promote(catalog, release.id, initial_reason="a test")
    with pytest.raises(UsageError, match="has no unfinished run"):
        api.gc(config, delete=True, drop_run=release.id)
    serves(config, release)
    assert status(catalog).runs == ()


def test_the_same_command_ends_the_run_and_embeds_nothing(config, catalog, at):
    release = built_but_not_ended(config, catalog, at)
    heard = []
    assert full_rebuild(config, heard.append, executor=Inline()) == release
    assert [type(event).__name__ for event in heard if "Built" in type(event).__name__] == [
        "AlreadyBuilt"
    ]
    assert Run(catalog.storage, release.id).result().release == release.id


def test_a_catch_up_that_died_and_went_live_is_not_dropped_as_a_run(config, catalog, at):
    promote(catalog, build(config).id, initial_reason="a test")
    row = dict.fromkeys(lance.dataset(config.source.uri).schema.names, "new")
    lance.write_dataset(pa.Table.from_pylist([row]), config.source.uri, mode="append")

    def follow():
        catch_up_and_follow(
            catalog, config, "live", Silent(), executor=Inline(), retry_dead_letters=False
        )

    at("run.after_register", die)
    with pytest.raises(Died):
        follow()
    follow()
    live = catalog.live().release
    assert live.rows == 61
    assert status(catalog).runs == ()
    with pytest.raises(UsageError, match="has no unfinished run"):
        api.gc(config, delete=True, drop_run=live.id)
    serves(config, live)


def test_a_release_whose_marks_are_lost_is_found_by_its_record(config, catalog):
    live, waiting = build(config), build(config, fresh=True)
    promote(catalog, live.id, initial_reason="a test")
    catalog.storage.delete_tree("lines/")
    assert set(catalog.ids()) == {live.id, waiting.id}
    planned = gc.plan(catalog, 1)
    assert {k.release for k in planned.keep} == {live.id, waiting.id}
    assert (planned.remove, planned.tables, planned.dropped_runs) == ([], [], [])
    gc.apply(catalog, planned, 1)
    serves(config, live)


def test_a_run_given_up_at_the_moment_it_registers_leaves_no_release_that_serves(
    config, catalog, at
):
    def give_up():
        (entry,) = catalog.entries()
        Run(catalog.storage, entry.id).abandon()

    at("run.before_register", give_up)
    with pytest.raises(Conflict, match="was given up"):
        build(config)
    assert catalog.ids() == []
    release = build(config)
    promote(catalog, release.id, initial_reason="a test")
    gc.apply(catalog, gc.plan(catalog, 1), 1)
    serves(config, release)


def test_a_run_given_up_before_it_is_driven_stops_before_it_embeds(config, catalog, monkeypatch):
    from reembed.strategies import full_rebuild as rebuilding

    begin = rebuilding.begin

    def begun_and_given_up(storage, alias, run_id, place):
        begin(storage, alias, run_id, place)
        Run(storage, run_id).abandon()

    monkeypatch.setattr(rebuilding, "begin", begun_and_given_up)
    heard = []
    with pytest.raises(Conflict, match="was given up"):
        full_rebuild(config, heard.append, executor=Inline())
    assert "Planned" not in {type(event).__name__ for event in heard}
