"""gc lists first, deletes with --yes, and never what a run or a release may still need."""

from __future__ import annotations

from pathlib import Path

import lance
import pytest
from flow_tables import rows_of

from reembed import gc
from reembed.catalog import Catalog
from reembed.errors import Conflict, UsageError
from reembed.promote import promote
from reembed.runs import driving, find_runs
from reembed.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


def catalog_of(config):
    return Catalog(Storage.open(config.storage.root), config.alias)


def names(storage, prefix):
    return {path for path, _ in storage.objects(prefix)}


def test_files_that_no_version_uses_are_listed_and_then_removed(corpus, make_config, quiet):
    config = make_config(corpus(120))
    release = full_rebuild(config, quiet)
    storage, catalog = Storage.open(config.storage.root), catalog_of(config)
    before = names(storage, f"{release.table}/")
    left = {
        f"{release.table}/data/0000.lance": b"a worker died before its receipt",
        f"{release.table}/_versions/7.manifest#1": b"a torn commit",
        f"{release.table}/_transactions/.tmp12": b"another",
    }
    for path, content in left.items():
        Path(storage.uri(path)).parent.mkdir(exist_ok=True)
        Path(storage.uri(path)).write_bytes(content)
    planned = gc.plan(catalog, 3)
    assert {o.path for o in planned.orphans} == set(left)
    assert all(Path(storage.uri(p)).exists() for p in left), "listing deleted something"
    gc.apply(catalog, planned, 3)
    assert not any(Path(storage.uri(p)).exists() for p in left)
    assert names(storage, f"{release.table}/") == before
    assert rows_of(storage, release).num_rows == 120


def test_an_unfinished_run_holds_its_table_until_it_is_given_up(
    corpus, make_config, config_file, quiet, cli
):
    source = corpus(120)
    file, config = config_file(source), make_config(source)
    assert cli.process("run", "-c", file, REEMBED_CRASH_AT="table.before_commit").returncode == -9
    storage, catalog = Storage.open(config.storage.root), catalog_of(config)
    (run,) = find_runs(storage, config.alias)
    table = run.plan().table
    staged = names(storage, f"{table}/data/")
    assert staged
    assert cli("gc", "-c", file)["orphans"] == []
    with driving(run), pytest.raises(Conflict):
        gc.drop_run(catalog, run.id)
    with pytest.raises(UsageError, match="no unfinished run"):
        gc.drop_run(catalog, "passages-00000000-v1-1")
    listed = cli("gc", "-c", file, "--drop-run", run.id)
    assert {o["path"] for o in listed["orphans"]} == staged
    assert listed["dropped_runs"] == [run.id]
    cli("gc", "-c", file, "--yes")
    assert not names(storage, f"{table}/data/")
    assert not names(storage, run.path("units/"))
    assert run.pin_tag not in lance.dataset(source).tags.list()
    assert cli("gc", "-c", file)["dropped_runs"] == []


def test_what_a_catch_up_shares_with_its_base_outlives_the_base(corpus, make_config, quiet):
    source = corpus(300)
    config = make_config(source, storage={"keep": 1})
    catalog = catalog_of(config)
    first = full_rebuild(config, quiet)
    promote(catalog, first.id)
    release = first
    for text in ("'one'", "'two'"):
        lance.dataset(source).update({"text": text}, where="doc_id = 'd00003'")
        release = catch_up(config, release, quiet)
        catalog.append(catalog.live(), "catch-up", release)
    planned = gc.plan(catalog, 1)
    assert first.id in {r.release for r in planned.remove}
    gc.apply(catalog, planned, 1)
    table = rows_of(catalog.storage, release)
    assert table.num_rows == 300
    assert gc.plan(catalog, 1).remove == []
    again = catch_up(config, release, quiet)
    assert again == release
