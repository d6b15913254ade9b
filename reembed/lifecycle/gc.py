"""What can be deleted, why the rest is held, and deleting it. Lists first; marks before it deletes."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from reembed import faults
from reembed.catalog.index_manifest import read_manifest
from reembed.catalog.lease import is_driven
from reembed.catalog.plan import Plan
from reembed.catalog.releases import Catalog, Release, SourceRef
from reembed.catalog.runs import Run, open_runs
from reembed.clock import now
from reembed.errors import Conflict, IntegrityError, SourceError, UsageError
from reembed.lifecycle.gc_comparisons import unnamed_values
from reembed.lifecycle.gc_plan import GcPlan, Kept, Orphan, Removable, files_below
from reembed.lifecycle.gc_reasons import planned_of, why_kept
from reembed.source.dataset import Source
from reembed.store.at_once import at_once
from reembed.store.lance import tags_of
from reembed.store.paths import index_folder, is_tag_of, release_path, table_tag
from reembed.store.records import DAMAGED, encode
from reembed.table import provenance
from reembed.table.read import (
    DELETIONS,
    INDICES,
    file_path,
    files_of,
    index_folders,
    open_table,
    used_files,
)
from reembed.table.seal import Sealed
from reembed.table.write import path_of

log = logging.getLogger(__name__)

_STAGING = ("comparing/", "rows/", "units/", "receipts/", "attempts/", "leases/", "index/")
_CLEARED = "cleared.json"


@dataclass(frozen=True)
class _Cleared:
    """Record that everything a dropped run left was deleted."""

    at: str


def plan(catalog: Catalog, keep: int, *, dropping: str | None = None) -> GcPlan:
    """Return what gc would do; nothing is changed.

    It keeps live, what rollback goes back to, the `keep` releases that served last, what all of these
    grew into, candidates, and what unfinished runs other than `dropping` may need.

    Raises:
        IntegrityError: a record names what another run or release made.
    """
    storage, known = catalog.storage, catalog.entries()
    releases = at_once(catalog.release, [e.id for e in known if e.released])
    _require_own_places(catalog, releases)
    unreleased = planned_of(Run(storage, e.id) for e in known if not e.released)
    # Before looking which runs are open: what is written later is not in these lists.
    files = _files_of_tables(catalog, releases, unreleased)
    indexes = _files_by_index(catalog)
    going_on = planned_of(r for r in open_runs(storage, catalog.alias) if r.id != dropping)
    held_tables = {p.table for _, p in going_on}
    reasons = why_kept(catalog, keep, dropping)
    kept = at_once(catalog.release, reasons)
    at_once(partial(provenance.require_manifest, storage), kept)
    tables_kept = {r.table for r in kept} | held_tables
    given_up = {run.id for run, _ in unreleased} | {dropping}
    runs = [Run(storage, e.id) for e in known if e.id in given_up]
    dropped = _dropped(catalog, runs, indexes, dropping)
    proven = _proven_files(catalog, kept)
    gone = {e.id for e in known if e.retired and e.id not in indexes}
    removable = _counted_once(
        _removable(catalog, r, indexes.get(r.id, []), files, whole=r.table not in tables_kept)
        for r in releases
        if r.id not in reasons and r.id not in gone
    )
    going = {r.table for r in removable if r.whole_table}
    free = {t: listed for t, listed in files.items() if t not in held_tables | going and listed}
    shared, unused = sorted(free.keys() & tables_kept), sorted(free.keys() - tables_kept)
    orphans = [o for t in shared for o in _orphans(catalog, t, free[t]) if o.path not in proven]
    unnamed = at_once(lambda r: _unnamed(catalog, r, indexes.get(r.id, [])), kept)
    return GcPlan(
        keep=[Kept(k, v) for k, v in reasons.items()],
        remove=removable,
        orphans=[*orphans, *chain.from_iterable(unnamed), *unnamed_values(catalog)],
        dropped_runs=dropped,
        tables=unused,
        tables_bytes=sum(o.size for t in unused for o in free[t]),
        # Versions that nothing names hold files that no named version has.
        trim=[
            t
            for t in shared
            if used_files(storage, t) - _named_files(catalog, t, releases, {*dropped})
        ],
        held_runs=[run.id for run, _ in going_on],
    )


def apply(catalog: Catalog, planned: GcPlan, keep: int) -> list[Removable]:
    """Delete what the plan lists, except what is needed since; a second call finishes a first one.

    Raises:
        IntegrityError: a symbolic link lies where something is to be deleted; then nothing is.
    """
    _require_own(catalog, planned)
    removed = []
    for item in planned.remove:
        catalog.mark_retired(item.release)
        faults.point("gc.after_mark")
        if item.release in why_kept(catalog, keep):
            catalog.unmark_retired(item.release)
            continue
        release = catalog.release(item.release)
        _untag(catalog, item.table, release.id)
        faults.point("gc.after_table")
        _clear(catalog, Run(catalog.storage, release.id), release.source)
        catalog.storage.delete_tree(f"{item.index}/")
        removed.append(item)
    for name in planned.dropped_runs:
        _clear_dropped(catalog, Run(catalog.storage, name))
    # A run may have been started since, and what it holds must stay.
    again = plan(catalog, keep)
    for table in again.tables:
        catalog.storage.delete_tree(f"{table}/")
    for table in again.trim:
        if table in plan(catalog, keep).trim:
            _trim(catalog, table)
    faults.point("gc.before_orphans")
    still = {o.path for o in plan(catalog, keep).orphans}
    for orphan in planned.orphans:
        if orphan.path in still:
            catalog.storage.remove(orphan.path)
    return removed


def _require_own(catalog: Catalog, planned: GcPlan) -> None:
    runs = [r.release for r in planned.remove] + planned.dropped_runs
    for path in (
        *(r.index for r in planned.remove),
        *(r.table for r in planned.remove),
        *map(index_folder, planned.dropped_runs),
        *(f"runs/{name}" for name in runs),
        *planned.tables,
        *planned.trim,
        *(o.path for o in planned.orphans),
    ):
        catalog.storage.require_own(path)


def _require_own_places(catalog: Catalog, releases: list[Release]) -> None:
    for r in releases:
        tag = r.table_tag if is_tag_of(r.table_tag, r.id) else table_tag(r.id)
        own = (index_folder(r.id), tag, path_of(catalog.alias, r.space))
        path = release_path(catalog.alias, r.id)
        _require_equal(catalog.storage.uri(path), own, (r.index, r.table_tag, r.table))


def _require_equal(uri: str, own: tuple[str, ...], named: tuple[str, ...]) -> None:
    """Require that a record names what its own run made: gc deletes what it names."""
    for expected, found in zip(own, named, strict=True):
        if found != expected:
            raise IntegrityError(
                f"{uri} names {found!r:.80} in place of {expected}",
                "the record was damaged or written by someone else, so nothing is deleted",
                DAMAGED,
            )


def droppable(catalog: Catalog, name: str) -> Run:
    """Return an unfinished run that can be given up, so that gc may remove what it staged.

    Raises:
        UsageError: there is no such unfinished run.
        Conflict: it is being driven.
    """
    found = [r for r in open_runs(catalog.storage, catalog.alias) if r.id == name]
    if not found or catalog.registered(found[0]) is not None:
        raise UsageError(f"{catalog.alias} has no unfinished run {name}", None, "reembed status")
    if is_driven(found[0]):
        raise Conflict(f"run {name} is being driven", None, "reembed status")
    return found[0]


def _files_of_tables(
    catalog: Catalog, releases: list[Release], planned: list[tuple[Run, Plan]]
) -> dict[str, list[Orphan]]:
    """Return the files of every table that a release of this alias has, or another run planned for.

    Raises:
        IntegrityError: a symbolic link lies among them, or a plan is not that of its run.
    """
    for run, p in planned:
        own = (run.id, catalog.alias, path_of(catalog.alias, p.space))
        uri = catalog.storage.uri(run.path("plan.json"))
        _require_equal(uri, own, (p.run_id, p.alias, p.table))
    tables = {r.table for r in releases} | {p.table for _, p in planned}
    for table in tables:
        catalog.storage.require_own(table)
    return {t: files_below(catalog.storage, f"{t}/") for t in sorted(tables)}


def _files_by_index(catalog: Catalog) -> dict[str, list[Orphan]]:
    """Return the files of every index, by the run that made it; only those of runs that left some."""
    found: dict[str, list[Orphan]] = {}
    for file in files_below(catalog.storage, "indexes/"):
        found.setdefault(file.path.split("/")[1], []).append(file)
    return found


def _orphans(catalog: Catalog, table: str, files: list[Orphan]) -> list[Orphan]:
    """Return the files of a table that are in no version of it, and what torn commits left."""
    names = used_files(catalog.storage, table)
    used = {file_path(table, name) for name in names}
    held, torn = (f"{table}/data/", f"{table}/{DELETIONS}"), f"{table}/_transactions/.tmp"
    indexes = f"{table}/{INDICES}"

    def is_unused(path: str) -> bool:
        if path.startswith(indexes):
            return INDICES + path.removeprefix(indexes).partition("/")[0] not in names
        return path.startswith(held) and path not in used

    return [f for f in files if is_unused(f.path) or f.path.startswith(torn) or "#" in f.path]


def _unnamed(catalog: Catalog, release: Release, files: list[Orphan]) -> list[Orphan]:
    """Return those of its index's files that a release does not name: other processes drove its run too."""
    folder = release.index
    try:
        manifest = read_manifest(catalog.storage, folder, release.index_sha256)
    except IntegrityError:  # what it names is not known, so nothing is unnamed
        return []
    named = {f"{folder}/{release.index_sha256}.json", *manifest.stored(folder)}
    return [o for o in files if o.path not in named]


def _dropped(
    catalog: Catalog, runs: list[Run], indexes: Collection[str], dropping: str | None
) -> list[str]:
    """Return the runs that were given up, or are to be, and left something that is still there."""
    left = at_once(lambda r: r.id == dropping or _is_dropped(catalog, r, indexes), runs)
    return [run.id for run, is_left in zip(runs, left, strict=True) if is_left]


def _is_dropped(catalog: Catalog, run: Run, indexes: Collection[str]) -> bool:
    """Return whether a planned run was given up and something that it left is still there.

    A driver that did not notice may have written index files since: `indexes` names the runs that have some.
    """
    result = run.result()
    if result is None or result.release:
        return False
    if catalog.storage.size(release_path(catalog.alias, run.id)) is not None:
        return False  # it was registered meanwhile: its data is a release's
    return run.id in indexes or run.storage.read_if_there(run.path(_CLEARED)) is None


def _clear_dropped(catalog: Catalog, run: Run) -> None:
    """Remove what a dropped run left outside its table's files."""
    if planned := run.plan():
        _untag(catalog, planned.table, run.id)
    catalog.storage.delete_tree(f"{index_folder(run.id)}/")
    _clear(catalog, run, planned.source if planned else None)
    run.storage.create(run.path(_CLEARED), encode(_Cleared(now())))


def _clear(catalog: Catalog, run: Run, source: SourceRef | None) -> None:
    """Remove a run's receipts, and its tag on the source if that can be written to."""
    if source is not None:
        try:
            Source(source, catalog.source_options).unpin(run.pin_tag)
        except (OSError, ValueError, SourceError) as error:
            log.warning("the tag %s stays on %s: %s", run.pin_tag, source.uri, error)
    for folder in _STAGING:
        run.storage.delete_tree(run.path(folder))


def _proven_files(catalog: Catalog, kept: list[Release]) -> set[str]:
    """Return the paths of the files that the records of kept releases name."""

    def of(release: Release) -> set[str]:
        sealed = catalog.storage.decode_if_there(Sealed, f"runs/{release.id}/sealed.json")
        return {file_path(release.table, name) for name in sealed.files} if sealed else set()

    return set().union(*at_once(of, kept))


def _removable(
    catalog: Catalog,
    release: Release,
    index: list[Orphan],
    tables: Mapping[str, list[Orphan]],
    *,
    whole: bool,
) -> Removable:
    size = sum(o.size for o in index if not catalog.storage.is_shared(o.path))
    table = sum(o.size for o in tables[release.table]) if whole else 0
    return Removable(
        release.id,
        "neither live nor previous nor kept",
        release.index,
        size,
        release.table,
        release.table_version,
        whole,
        table,
    )


def _counted_once(listed: Iterable[Removable]) -> list[Removable]:
    """Return the releases with the bytes of each table at the first of its releases: it goes once."""
    counted: set[str] = set()
    found = []
    for item in listed:
        found.append(replace(item, table_bytes=0) if item.table in counted else item)
        counted.add(item.table)
    return found


def _untag(catalog: Catalog, table: str, run_id: str) -> None:
    """Remove the tags of a run's versions: with its index, where Lance keeps that, and without."""
    catalog.storage.require_own(table)
    if not catalog.storage.objects(f"{table}/_versions/"):
        return  # the table is gone
    dataset = open_table(catalog.storage, table)
    for tag in sorted(t for t in tags_of(dataset) if is_tag_of(t, run_id)):
        dataset.tags.delete(tag)


def _named_files(
    catalog: Catalog, table: str, releases: Iterable[Release], gone: set[str]
) -> set[str]:
    """Return the files of the versions that a tag names; those of runs in `gone`, and spare ones, do not count."""
    tags = tags_of(open_table(catalog.storage, table))
    own = {t for t in tags for run_id in gone if is_tag_of(t, run_id)} | _spare(tags, releases)
    named = {version for tag, version in tags.items() if tag not in own}
    versions = (open_table(catalog.storage, table, v) for v in named)
    return {f for version in versions for f in (*files_of(version), *index_folders(version))}


def _spare(tags: Iterable[str], releases: Iterable[Release]) -> set[str]:
    """Return the tags of registered runs that their releases do not name.

    Where Lance keeps the index, the sealed version has a tag of its own, and so has an index that missed its target.
    """
    return {t for r in releases for t in tags if is_tag_of(t, r.id) and t != r.table_tag}


def _trim(catalog: Catalog, table: str) -> None:
    """Delete spare tags, and versions that nothing names.

    Lance never deletes the newest one. If that is of a given-up run, the newest named one is restored.
    """
    catalog.storage.require_own(table)
    dataset = open_table(catalog.storage, table)
    releases = catalog.releases()
    for tag in sorted(_spare(tags_of(dataset), releases)):
        dataset.tags.delete(tag)
    held = {*files_of(dataset), *index_folders(dataset)}
    if held - _named_files(catalog, table, releases, set()):
        newest = max(tags_of(dataset).values())
        open_table(catalog.storage, table, newest).restore()
    open_table(catalog.storage, table).cleanup_old_versions(
        older_than=dt.timedelta(microseconds=1),  # a zero timedelta is falsy and means "two weeks"
        delete_unverified=False,
        error_if_tagged_old_versions=False,
    )
