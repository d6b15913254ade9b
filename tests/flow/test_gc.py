"""gc lists first, deletes with --yes, and never what a run or a release may still need."""

from __future__ import annotations

from pathlib import Path

import lance
import pytest
from flow_tables import rows_of
from inline import Inline

from reembed.catalog.lease import driving
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run, find_runs
from reembed.engine.ray_executor import RayExecutor
from reembed.errors import Conflict, UsageError
from reembed.lifecycle import gc
from reembed.lifecycle.candidates import candidates
from reembed.lifecycle.promote import promote
from reembed.store.storage import Storage
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


def catalog_of(config):
    return Catalog(Storage.open(config.storage.root), config.alias)


def names(storage, prefix):
    return {path for path, _ in storage.objects(prefix)}


def test_files_that_no_version_uses_are_listed_and_then_removed(corpus, make_config, quiet):
    config = make_config(corpus(120))
    release = full_rebuild(config, quiet, executor=Inline())
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


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
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
        gc.droppable(catalog, run.id)
    with pytest.raises(UsageError, match="no unfinished run"):
        gc.droppable(catalog, "passages-00000000-v1-1")
    listed = cli("gc", "-c", file, "--drop-run", run.id)
    assert (listed["dropped_runs"], listed["tables"]) == ([run.id], [table])
    assert run.result() is None, "listing gave it up"
    assert cli("gc", "-c", file)["dropped_runs"] == []
    cli("gc", "-c", file, "--drop-run", run.id, "--yes")
    assert not names(storage, f"{table}/data/")
    assert not names(storage, run.path("units/"))
    assert run.pin_tag not in lance.dataset(source).tags.list()
    assert cli("gc", "-c", file)["dropped_runs"] == []


def test_what_a_catch_up_shares_with_its_base_outlives_the_base(corpus, make_config, quiet):
    config = make_config(corpus(300), storage={"keep": 1})
    catalog = catalog_of(config)
    first, _, release = caught_up_twice(config, quiet)
    planned = gc.plan(catalog, 1)
    assert first.id in {r.release for r in planned.remove}
    gc.apply(catalog, planned, 1)
    table = rows_of(catalog.storage, release)
    assert table.num_rows == 300
    assert gc.plan(catalog, 1).remove == []
    again = catch_up(config, release, quiet, executor=Inline())
    assert again == release


def test_what_gc_says_it_frees_of_an_index_is_what_the_disk_has_more_of(corpus, make_config, quiet):
    config = make_config(corpus(300), storage={"keep": 1})
    catalog = catalog_of(config)
    caught_up_twice(config, quiet)
    (removable, *_) = gc.plan(catalog, 1).remove
    before = on_disk(config.storage.root)
    files = catalog.storage.objects(f"{removable.index}/")
    catalog.storage.delete_tree(f"{removable.index}/")
    assert before - on_disk(config.storage.root) == removable.index_bytes
    assert removable.index_bytes < sum(size for _, size in files)


def caught_up_twice(config, quiet):
    """A release that was live, and the two that it grew into."""
    releases = [full_rebuild(config, quiet, executor=Inline())]
    promote(catalog_of(config), releases[0].id, initial_reason="a test")
    for text in ("'one'", "'two'"):
        lance.dataset(config.source.uri).update({"text": text}, where="doc_id = 'd00003'")
        releases.append(catch_up(config, releases[-1], quiet, executor=Inline()))
        catalog_of(config).append(catalog_of(config).live(), "catch-up", releases[-1])
    return releases


def on_disk(root):
    """Bytes of all files, of several links to one file once."""
    stats = [p.lstat() for p in Path(root).rglob("*") if p.is_file()]
    return sum({s.st_ino: s.st_size for s in stats}.values())


def test_a_candidate_outlives_a_catch_up_of_what_is_live(corpus, make_config, quiet):
    source = corpus(120)
    catalog = catalog_of(make_config(source))
    first = full_rebuild(make_config(source), quiet, executor=Inline())
    promote(catalog, first.id, initial_reason="a test")
    waiting = full_rebuild(
        make_config(source, encoder={"model": "hashing:16"}), quiet, executor=Inline()
    )
    lance.dataset(source).delete("doc_id = 'd00003'")
    catalog.append(
        catalog.live(), "catch-up", catch_up(make_config(source), first, quiet, executor=Inline())
    )
    assert [c.id for c in candidates(catalog, catalog.live())] == [waiting.id]
    planned = gc.plan(catalog, 1)
    assert {r.release for r in planned.remove} == {first.id}
    gc.apply(catalog, planned, 1)
    assert promote(catalog, waiting.id, force_reason="a test").release == waiting


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("another", ["nothing", "a release", "an open run"])
@pytest.mark.deep
def test_a_run_given_up_after_its_seal_leaves_nothing(
    corpus, make_config, config_file, quiet, cli, another
):
    source = corpus(120)
    config, storage = make_config(source), Storage.open(make_config(source).storage.root)
    catalog = catalog_of(config)
    if another == "a release":
        kept = full_rebuild(config, quiet, executor=RayExecutor())
        lance.dataset(source).delete("doc_id = 'd00003'")
    file = config_file(source)
    assert cli.process("run", "-c", file, REEMBED_CRASH_AT="run.before_register").returncode == -9
    run = next(r for r in find_runs(storage, config.alias) if r.result() is None)
    table, sealed = run.plan().table, {*run.storage.read(run.path("sealed.json"))["files"]}
    if another == "an open run":
        other = config_file(source, "other.yaml", encoder={"model": "hashing:16"})
        dead = cli.process("run", "-c", other, REEMBED_CRASH_AT="table.before_commit")
        assert dead.returncode == -9
    cli("gc", "-c", file, "--drop-run", run.id, "--yes")
    left = names(storage, "")
    assert not [p for p in left if p.startswith(f"indexes/{run.id}/")]
    assert not [p for p in left if p.rsplit("/", 1)[-1] in sealed]
    assert gc.plan(catalog, 3).trim == gc.plan(catalog, 3).tables == []
    if another == "a release":
        assert rows_of(storage, kept).num_rows == 120
        assert lance.dataset(storage.uri(table)).count_rows() == 120, "the newest version"
        assert full_rebuild(config, quiet, executor=RayExecutor()).rows == 119


def test_plans_of_registered_runs_are_not_read(corpus, make_config, quiet, monkeypatch):
    """A plan has a line for each unit; what a release holds is in its own record."""
    config = make_config(corpus(60), storage={"keep": 1})
    caught_up_twice(config, quiet)
    monkeypatch.setattr(Run, "plan", lambda run: pytest.fail(f"the plan of {run.id} was read"))
    assert gc.plan(catalog_of(config), 1).remove
