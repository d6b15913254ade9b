"""What can be deleted, why the rest is held, and deleting it. Lists first; marks before it deletes."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import asdict, dataclass
from typing import Any

from reembed import faults
from reembed.catalog import Catalog, Release
from reembed.errors import SourceError
from reembed.promote import standing
from reembed.runs import Run, find_runs
from reembed.source import Source
from reembed.table_version import open_table

log = logging.getLogger(__name__)

_STAGING = ("units/", "attempts/", "leases/")


@dataclass(frozen=True)
class Kept:
    """A release that stays."""

    release: str
    why: str


@dataclass(frozen=True)
class Removable:
    """A release whose data can go."""

    release: str
    why: str
    index: str
    index_bytes: int
    table: str
    table_version: int
    whole_table: bool
    """No other release or unfinished run uses the table."""
    table_bytes: int
    """What goes for certain: the whole table, or 0 where versions share files."""


@dataclass(frozen=True)
class GcPlan:
    """What gc would do."""

    keep: list[Kept]
    remove: list[Removable]
    held_runs: list[str]
    """Unfinished runs, whose tables are not touched."""

    def to_json(self) -> dict[str, Any]:
        """For people and scripts."""
        freed = sum(r.index_bytes + r.table_bytes for r in self.remove)
        return {**asdict(self), "bytes": freed}


def plan(catalog: Catalog, keep: int) -> GcPlan:
    """Decide, without touching anything.

    Kept: live, what rollback goes back to, the `keep` releases that served last, every candidate
    built after the live release, and whatever an unfinished run may still need.
    """
    reasons = _reasons(catalog, keep)
    open_runs = [r for r in find_runs(catalog.storage, catalog.alias) if r.result() is None]
    held_tables = {p.table for r in open_runs if (p := r.plan())}
    releases = catalog.releases()
    tables_kept = {r.table for r in releases if r.id in reasons} | held_tables
    removable = [
        _removable(catalog, r, whole=r.table not in tables_kept)
        for r in releases
        if r.id not in reasons and not _is_gone(catalog, r)
    ]
    return GcPlan([Kept(k, v) for k, v in reasons.items()], removable, [r.id for r in open_runs])


def apply(catalog: Catalog, planned: GcPlan, keep: int) -> list[Removable]:
    """Delete what the plan lists, skipping what became needed since; running it again finishes it."""
    removed = []
    for item in planned.remove:
        catalog.mark_retired(item.release)
        faults.point("gc.after_mark")
        if item.release in _reasons(catalog, keep):
            catalog.unmark_retired(item.release)
            continue
        _remove_table(catalog, item, held=set(plan(catalog, keep).held_runs))
        faults.point("gc.after_table")
        release = catalog.release(item.release)
        _unpin(catalog, release)
        for folder in _STAGING:
            catalog.storage.delete_tree(f"runs/{release.run_id}/{folder}")
        catalog.storage.delete_tree(f"{item.index}/")
        removed.append(item)
    return removed


def _reasons(catalog: Catalog, keep: int) -> dict[str, str]:
    log = catalog.log()
    stack = standing(log)
    reasons: dict[str, str] = {}
    if stack:
        reasons[stack[-1].id] = "live"
    if len(stack) > 1:
        reasons[stack[-2].id] = "previous: rollback goes here"
    for record in reversed(log):
        if len(reasons) >= keep:
            break
        reasons.setdefault(record.release.id, f"among the last {keep} that served (storage.keep)")
    served = {record.release.id for record in log}
    live_since = stack[-1].created_at if stack else ""
    for release in catalog.releases():
        if (
            release.id not in served
            and release.created_at >= live_since
            and not catalog.is_retired(release.id)
        ):
            reasons.setdefault(release.id, "candidate")
    return reasons


def _is_gone(catalog: Catalog, release: Release) -> bool:
    return catalog.is_retired(release.id) and not any(
        True for _ in catalog.storage.objects(f"{release.index}/")
    )


def _removable(catalog: Catalog, release: Release, *, whole: bool) -> Removable:
    size = sum(s for _, s in catalog.storage.objects(f"{release.index}/"))
    table = sum(s for _, s in catalog.storage.objects(f"{release.table}/")) if whole else 0
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


def _remove_table(catalog: Catalog, item: Removable, held: set[str]) -> None:
    catalog.storage.require_inside(item.table)
    if item.whole_table:
        catalog.storage.delete_tree(f"{item.table}/")
        return
    dataset = open_table(catalog.storage, item.table)
    tag = catalog.release(item.release).table_tag
    if tag in dataset.tags.list():
        dataset.tags.delete(tag)
    if not held:  # cleanup beside a writer may take what it is about to commit
        dataset.cleanup_old_versions(
            older_than=dt.timedelta(
                microseconds=1
            ),  # a zero timedelta is falsy and means "two weeks"
            delete_unverified=False,
            error_if_tagged_old_versions=False,
        )


def _unpin(catalog: Catalog, release: Release) -> None:
    """Take our tag off the source version; a source that is gone or read-only keeps what it has."""
    tag = Run(catalog.storage, release.run_id).pin_tag
    try:
        Source.from_json(release.source, catalog.storage.options).unpin(tag)
    except (OSError, ValueError, SourceError) as error:
        log.warning("the tag %s stays on %s: %s", tag, release.source["uri"], error)
