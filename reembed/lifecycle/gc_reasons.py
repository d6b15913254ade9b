"""Why releases stay: what serves, served or may serve, and what unfinished runs need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from reembed.catalog.lines import RunEntry, entries
from reembed.catalog.plan import Plan
from reembed.catalog.releases import AliasRecord, Catalog, Release
from reembed.catalog.runs import Run, open_among
from reembed.lifecycle.candidates import candidates, newest_by_line, previous
from reembed.lifecycle.gc_plan import files_below
from reembed.lifecycle.holdover import last_shadow
from reembed.store.at_once import at_once


def why_kept(catalog: Catalog, keep: int, dropping: str | None = None) -> dict[str, str]:
    """Return why each release stays. A marked release may stay: `apply` marks it, then asks again."""
    steps = catalog.log()
    live = steps[-1] if steps else None
    top = islice(catalog.standing(live), 2)
    stack = [r for s in top if not _is_gone(catalog, r := catalog.release(s.release))]
    reasons = {r.id: why for r, why in zip(stack, ("live", "previous"), strict=False)}
    newest = newest_by_line(catalog.entries())
    stood = previous(catalog, live)
    if stood is not None and stood.origin in newest:
        reasons[newest[stood.origin].id] = "previous: rollback goes here"
    reasons |= _held_over(catalog, live, newest)
    kept = {r.id: r for r in stack}
    for record in reversed(steps):
        if len(reasons) < keep and not _is_gone(catalog, record.release):
            why = f"one of the last {keep} live releases (storage.keep)"
            reasons.setdefault(record.release.id, why)
            kept[record.release.id] = record.release
    for release_id, why in needed_by_runs(catalog, dropping):
        reasons.setdefault(release_id, why)
    for release in kept.values():
        if (grown := newest.get(release.origin)) is not None:
            reasons.setdefault(grown.id, f"{release.id}, caught up")
    served = {record.release.origin for record in steps}
    for waiting in candidates(catalog, live):
        if waiting.origin not in served:
            reasons.setdefault(waiting.id, "candidate")
    return reasons


def _held_over(
    catalog: Catalog, live: AliasRecord | None, newest: dict[str, RunEntry]
) -> dict[str, str]:
    """Return the release that a shadow keeps up to date after its cut-over, and why."""
    shadow = last_shadow(catalog, live)
    if shadow is None or shadow.stage != "holdover" or shadow.plan.live not in newest:
        return {}
    until = shadow.cut_over.until if shadow.cut_over else "the holdover is over"
    why = f"kept up to date by shadow {shadow.plan.number} until {until}"
    return {newest[shadow.plan.live].id: why}


def needed_by_runs(catalog: Catalog, dropping: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield the releases of this alias that unfinished runs of any alias build on or copy from, and why."""
    every = open_among(catalog.storage, entries(catalog.storage))
    for run, planned in planned_of(Run(catalog.storage, e.id) for e in every if e.id != dropping):
        if planned.base and planned.alias == catalog.alias:
            yield planned.base.release, f"run {run.id} builds on it"
        for donor in planned.donors:
            if donor.alias == catalog.alias:
                yield donor.release, f"run {run.id} copies vectors from it"


def is_copied(catalog: Catalog) -> bool:
    """Return whether unfinished runs of other aliases copy vectors from releases of this one."""
    others = (e for e in entries(catalog.storage) if e.alias != catalog.alias)
    planned = planned_of(Run(catalog.storage, e.id) for e in open_among(catalog.storage, [*others]))
    return any(donor.alias == catalog.alias for _, plan in planned for donor in plan.donors)


def _is_gone(catalog: Catalog, release: Release) -> bool:
    return catalog.is_retired(release) and not files_below(catalog.storage, f"{release.index}/")


def planned_of(runs: Iterable[Run]) -> list[tuple[Run, Plan]]:
    """Return the runs that have a plan; one that was killed before that left nothing."""
    found = list(runs)
    pairs = zip(found, at_once(Run.plan, found), strict=True)
    return [(run, plan) for run, plan in pairs if plan]
