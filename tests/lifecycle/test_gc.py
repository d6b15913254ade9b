"""What gc takes and what it leaves, with several releases, tables and unfinished runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lance
import pytest
from inline import Inline, Silent

from reembed import faults
from reembed.catalog.lease import driving
from reembed.catalog.lines import begin
from reembed.catalog.releases import Catalog
from reembed.catalog.runs import Run, open_runs
from reembed.cli.text import text
from reembed.errors import Conflict, IntegrityError, UsageError
from reembed.lifecycle import gc
from reembed.lifecycle.gc_plan import Collected
from reembed.lifecycle.promote import rollback
from reembed.lifecycle.status import status
from reembed.store.records import encode
from reembed.store.storage import Storage, readable
from reembed.strategies.catch_up import catch_up
from reembed.strategies.full_rebuild import full_rebuild


class Killed(Exception):
    """In place of a kill."""


@pytest.fixture
def root(corpus, make_config):
    """(catalog, releases, interrupted): three models that served, and `interrupted(dim, point)`."""
    uri = corpus(130)
    catalog, releases = None, []

    def config(dim):
        return make_config(uri, encoder={"model": f"hashing:{dim}"}, embed={"reuse": False})

    for dim in (16, 24, 32):
        catalog = Catalog(Storage.open(config(dim).storage.root), config(dim).alias)
        releases.append(full_rebuild(config(dim), Silent(), executor=Inline()))
        catalog.append(catalog.live(), "promote", releases[-1])

    def interrupted(dim, point, what=None):
        def hook(name):
            if name == point:
                raise Killed

        before = open_runs(catalog.storage, catalog.alias)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(faults, "hook", hook)
            with pytest.raises(Killed):
                (what or (lambda: full_rebuild(config(dim), Silent(), executor=Inline())))()
        (run,) = [r for r in open_runs(catalog.storage, catalog.alias) if r not in before]
        return run

    interrupted.config, interrupted.uri = config, uri
    return catalog, releases, interrupted


def files(storage, prefix):
    return {path for path, _ in storage.objects(prefix)}


def test_files_that_any_kept_releases_record_names_stay_whatever_lance_says(root, monkeypatch):
    catalog, releases, _ = root
    monkeypatch.setattr(gc, "used_files", lambda storage, table: set())
    planned = gc.plan(catalog, 3)
    assert not planned.remove
    assert not [o for o in planned.orphans if o.path.startswith(tuple(r.table for r in releases))]


@pytest.mark.parametrize("named", ["a.lance", {"a.lance": 1}, []])
def test_nothing_is_removed_by_a_record_of_files_that_is_not_one(root, monkeypatch, named):
    catalog, releases, _ = root
    monkeypatch.setattr(gc, "used_files", lambda storage, table: set())
    path = f"runs/{releases[-1].id}/sealed.json"
    catalog.storage.write(path, {**catalog.storage.read(path), "files": named})
    with pytest.raises(IntegrityError, match=path):
        gc.plan(catalog, 3)


def test_only_what_no_unfinished_run_needs_is_taken(root):
    catalog, releases, interrupted = root
    runs = [interrupted(40, "table.before_commit"), interrupted(48, "run.before_register")]
    before = {r.id: files(catalog.storage, f"{r.plan().table}/") for r in runs}
    planned = gc.plan(catalog, 1)
    assert set(planned.held_runs) == {r.id for r in runs}
    assert (planned.dropped_runs, planned.tables, planned.trim, planned.orphans) == ([], [], [], [])
    assert [r.release for r in planned.remove] == [releases[0].id]
    gc.apply(catalog, planned, 1)
    for run in runs:
        assert files(catalog.storage, f"{run.plan().table}/") == before[run.id]
        assert run.staged()
    assert not files(catalog.storage, f"{releases[0].table}/")
    assert not files(catalog.storage, f"{releases[0].index}/")
    assert gc.plan(catalog, 1).remove == []


def test_of_several_unfinished_runs_only_the_one_that_is_given_up_goes(root):
    catalog, _releases, interrupted = root
    one, other = interrupted(40, "run.before_register"), interrupted(48, "table.before_commit")
    planned = gc.plan(catalog, 3, dropping=one.id)
    assert (planned.dropped_runs, planned.held_runs) == ([one.id], [other.id])
    assert planned.tables == [one.plan().table]
    assert planned.tables_bytes == sum(
        n for _, n in catalog.storage.objects(f"{one.plan().table}/")
    )
    one.abandon()
    pin = one.pin_tag
    assert {pin, other.pin_tag} <= lance.dataset(interrupted.uri).tags.list().keys()
    gc.apply(catalog, gc.plan(catalog, 3), 3)
    for place in (one.plan().table, f"indexes/{one.id}", one.path("units"), one.path("attempts")):
        assert not files(catalog.storage, f"{place}/")
    assert files(catalog.storage, f"{other.plan().table}/data/")
    assert other.staged()
    left = lance.dataset(interrupted.uri).tags.list()
    assert pin not in left
    assert other.pin_tag in left
    again = gc.plan(catalog, 3)
    assert (again.dropped_runs, again.tables, again.trim, again.orphans) == ([], [], [], [])


def test_what_can_be_given_up_is_an_unfinished_run_that_nobody_drives(root):
    catalog, releases, interrupted = root
    one, other = interrupted(40, "run.before_register"), interrupted(48, "table.before_commit")
    assert [gc.droppable(catalog, r.id).id for r in (one, other)] == [one.id, other.id]
    with pytest.raises(UsageError, match=f"no unfinished run {releases[1].id}"):
        gc.droppable(catalog, releases[1].id)
    with pytest.raises(UsageError, match="no unfinished run docs-0-v9-9"):
        gc.droppable(catalog, "docs-0-v9-9")
    with driving(other):
        with pytest.raises(Conflict, match=f"{other.id} is being driven"):
            gc.droppable(catalog, other.id)
        assert gc.droppable(catalog, one.id).id == one.id


def test_what_an_unfinished_catch_up_builds_on_stays_until_it_is_given_up(root):
    catalog, releases, interrupted = root
    lance.dataset(interrupted.uri).update({"text": "'another'"}, where="doc_id = 'd00003'")
    run = interrupted(
        16,
        "table.before_commit",
        lambda: catch_up(interrupted.config(16), releases[0], Silent(), executor=Inline()),
    )
    planned = gc.plan(catalog, 1)
    assert planned.remove == []
    assert f"run {run.id} builds on it" in {
        k.why for k in planned.keep if k.release == releases[0].id
    }
    dropping = gc.plan(catalog, 1, dropping=run.id)
    assert [r.release for r in dropping.remove] == [releases[0].id]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_as_are_asked_for_stay_and_never_less_than_live_and_previous(root, keep):
    catalog, releases, _ = root
    planned = gc.plan(catalog, keep)
    gone = [r.release for r in planned.remove]
    assert gone == ([releases[0].id] if keep < 3 else [])
    assert [k.release for k in planned.keep][:2] == [releases[2].id, releases[1].id]
    sizes = {r.release: (r.index_bytes, r.table_bytes) for r in planned.remove}
    for release in releases[: len(gone)]:
        index, table = (
            sum(n for _, n in catalog.storage.objects(f"{p}/"))
            for p in (release.index, release.table)
        )
        assert sizes[release.id] == (index, table)
        assert planned.to_json()["bytes"] == index + table


def test_a_release_that_became_needed_after_the_listing_stays(root):
    catalog, releases, _ = root
    planned = gc.plan(catalog, 1)
    catalog.append(catalog.live(), "rollback", releases[0])
    assert gc.apply(catalog, planned, 1) == []
    assert not catalog.is_retired(releases[0])
    assert files(catalog.storage, f"{releases[0].table}/data/")
    assert files(catalog.storage, f"{releases[0].index}/")


def test_the_release_that_a_rollback_goes_to_is_named(root):
    """What served before the live release was caught up since."""
    catalog, releases, interrupted = root
    lance.dataset(interrupted.uri).update({"text": "'another'"}, where="doc_id = 'd00003'")
    grown = catch_up(interrupted.config(24), releases[1], Silent(), executor=Inline())
    reasons = {k.release: k.why for k in gc.plan(catalog, 1).keep}
    assert reasons[releases[1].id] == "previous"
    assert reasons[grown.id] == "previous: rollback goes here"
    assert rollback(catalog).release.id == grown.id


def test_what_grew_out_of_a_kept_release_stays_with_it(root):
    """Rolled back from, then caught up: status shows it as a candidate."""
    catalog, releases, interrupted = root
    catalog.append(catalog.live(), "rollback", releases[1])
    lance.dataset(interrupted.uri).update({"text": "'another'"}, where="doc_id = 'd00003'")
    newer = catch_up(interrupted.config(32), releases[2], Silent(), executor=Inline())
    assert newer.id in {c.release.id for c in status(catalog).candidates}
    gc.apply(catalog, gc.plan(catalog, 3), 3)
    assert newer.id in {c.release.id for c in status(catalog).candidates}
    assert [r.release for r in gc.plan(catalog, 1).remove] == [releases[2].id, newer.id]


def test_files_that_the_records_of_any_kept_release_name_are_proven(root):
    catalog, releases, _ = root
    proven = gc._proven_files(catalog, releases)
    for release in releases:
        dataset = lance.dataset(catalog.storage.uri(release.table), release.table_version)
        files = {
            f"{release.table}/data/{f.path}"
            for m in dataset.get_fragments()
            for f in m.data_files()
        }
        assert len(files) > 1
        assert files <= proven


def test_only_an_unfinished_run_can_be_dropped(root):
    catalog, releases, _ = root
    for name in ("none-0-v1-1", releases[0].id, releases[1].id):
        with pytest.raises(UsageError, match=f"has no unfinished run {name}"):
            gc.droppable(catalog, name)


def test_of_the_files_of_a_table_those_of_no_version_are_orphans_and_no_other(root):
    catalog, releases, _ = root
    table = releases[1].table
    catalog.storage.write_bytes(f"{table}/data/stray.lance", b"stray")
    listed = [gc.Orphan(*f) for f in catalog.storage.objects(f"{table}/")]
    assert [o.path for o in gc._orphans(catalog, table, listed)] == [f"{table}/data/stray.lance"]


def test_bytes_of_a_table_count_where_all_of_it_goes(root):
    catalog, releases, _ = root
    release = releases[1]
    index, table = (
        gc.files_below(catalog.storage, f"{p}/") for p in (release.index, release.table)
    )
    whole, part = (
        gc._removable(catalog, release, index, {release.table: table}, whole=w)
        for w in (True, False)
    )
    assert (whole.index_bytes, part.table_bytes) == (part.index_bytes, 0)
    assert whole.index_bytes == sum(s for _, s in catalog.storage.objects(f"{release.index}/")) > 0
    assert whole.table_bytes == sum(s for _, s in catalog.storage.objects(f"{releases[1].table}/"))


def test_the_bytes_of_a_table_count_once_for_several_of_its_releases(corpus, make_config):
    uri = corpus(130)
    config = make_config(uri, embed={"reuse": False})
    catalog = Catalog(Storage.open(config.storage.root), config.alias)
    for _ in range(3):
        built = full_rebuild(config, Silent(), executor=Inline(), fresh=True)
        catalog.append(catalog.live(), "promote", built)
    for dim in (16, 24):
        other = make_config(uri, encoder={"model": f"hashing:{dim}"})
        built = full_rebuild(other, Silent(), executor=Inline())
        catalog.append(catalog.live(), "promote", built)
    planned = gc.plan(catalog, 1)
    (table,) = {r.table for r in planned.remove}
    places = [table, *(r.index for r in planned.remove)]
    size = sum(n for place in places for _, n in catalog.storage.objects(f"{place}/"))
    assert [r.whole_table for r in planned.remove] == [True] * 3
    assert planned.bytes == size == sum(r.index_bytes + r.table_bytes for r in planned.remove)
    said = text("gc", Collected(planned, (), False, None)).splitlines()
    lines = [line for line in said if line.startswith("  remove")]
    assert ["counted above" in line for line in lines] == [False, True, True]
    assert f"table {readable(planned.remove[0].table_bytes)}" in lines[0]


@pytest.mark.parametrize(
    ("field", "named"),
    [
        *(("index", path) for path in ("aliases", "indexes/{other}", "indexes", "runs/{other}")),
        *(("table", path) for path in ("releases", "tables", "{table}")),
        ("table_tag", "reembed-{other}"),
    ],
)
def test_gc_deletes_nothing_on_the_word_of_a_release_that_names_what_is_not_its_own(
    root, field, named
):
    """The record has the right form and sha256: someone wrote it."""
    catalog, (first, other, _), _ = root
    named = named.format(other=other.id, table=other.table)
    planted = f"{first.id}-u1-1"
    places = {"index": f"indexes/{planted}", "table_tag": f"reembed-{planted}"}
    place = replace(first.place, step=9)
    release = replace(first, id=planted, place=place, **places | {field: named})
    path = f"releases/{catalog.alias}/{planted}.json"
    catalog.register(release)
    before = files(catalog.storage, "")
    with pytest.raises(IntegrityError, match=f"{planted}.json names '{named}' in place of"):
        gc.plan(catalog, 1)
    assert files(catalog.storage, "") == before
    catalog.storage.write(path, encode(replace(release, **{field: places.get(field, first.table)})))
    assert planted in {r.release for r in gc.plan(catalog, 1).remove}


@pytest.mark.parametrize(
    ("field", "named"),
    [("table", "releases"), ("table", "{table}"), ("run_id", "x"), ("alias", "x")],
)
def test_gc_deletes_nothing_on_the_word_of_a_plan_that_names_what_is_not_its_own(
    root, field, named
):
    catalog, (first, other, _), _ = root
    named = named.format(table=other.table)
    planted = Run(catalog.storage, first.id.replace("-v1-", "-v1-9"))
    plan = replace(Run(catalog.storage, first.id).plan(), run_id=planted.id)
    begin(catalog.storage, catalog.alias, planted.id, replace(plan.place, origin=planted.id))
    planted.write_plan(replace(plan, **{field: named}))
    planted.abandon()
    with pytest.raises(IntegrityError, match=f"{planted.id}/plan.json names '{named}' in place of"):
        gc.plan(catalog, 3)
    catalog.storage.write(planted.path("plan.json"), plan.to_json())
    assert planted.id in gc.plan(catalog, 3).dropped_runs


def test_a_file_among_the_tags_of_a_table_that_is_not_one_is_named(root):
    catalog, releases, _ = root
    stray = f"{releases[1].table}/_refs/tags/stray.json"
    catalog.storage.write_bytes(stray, b"not a tag")
    with pytest.raises(IntegrityError, match="its tags cannot be read"):
        gc.apply(catalog, gc.plan(catalog, 0), 0)
    catalog.storage.remove(stray)
    assert gc.apply(catalog, gc.plan(catalog, 0), 0) is not None


def torn(catalog, folder):
    """A file as a killed process leaves it."""
    path = f"{folder}/{'0' * 64}.faiss#1"
    file = Path(catalog.storage.uri(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"half")
    return path


def test_a_half_written_file_of_the_index_of_a_kept_release_is_an_orphan(root):
    catalog, releases, _ = root
    path = torn(catalog, releases[1].index)
    assert gc.plan(catalog, 3).orphans == [gc.Orphan(path, 4)]
    gc.apply(catalog, gc.plan(catalog, 3), 3)
    assert not Path(catalog.storage.uri(path)).exists()
    assert gc.plan(catalog, 3).orphans == []


def test_half_written_index_files_of_an_unfinished_run_stay(root):
    catalog, _, interrupted = root
    path = torn(catalog, f"indexes/{interrupted(40, 'index.before_save').id}")
    gc.apply(catalog, gc.plan(catalog, 3), 3)
    assert Path(catalog.storage.uri(path)).exists()


@pytest.mark.parametrize("half", [True, False])
def test_index_files_that_come_after_their_run_was_given_up_and_cleared_go(root, half):
    catalog, _, interrupted = root
    run = interrupted(40, "index.before_save")
    run.abandon()
    gc.apply(catalog, gc.plan(catalog, 3), 3)
    assert gc.plan(catalog, 3).dropped_runs == []
    late = f"indexes/{run.id}/late.faiss"
    if half:
        late = torn(catalog, f"indexes/{run.id}")
    else:
        catalog.storage.write_bytes(late, b"late")
    assert gc.plan(catalog, 3).dropped_runs == [run.id]
    gc.apply(catalog, gc.plan(catalog, 3), 3)
    assert not Path(catalog.storage.uri(late)).exists()
    assert gc.plan(catalog, 3).dropped_runs == []


def test_a_half_written_index_file_of_a_removed_release_is_removed_too(root):
    catalog, releases, _ = root
    gc.apply(catalog, gc.plan(catalog, 1), 1)
    path = torn(catalog, releases[0].index)
    assert [r.release for r in gc.plan(catalog, 1).remove] == [releases[0].id]
    gc.apply(catalog, gc.plan(catalog, 1), 1)
    assert not Path(catalog.storage.uri(path)).exists()
    assert gc.plan(catalog, 1).remove == []
